"""Quantized checkpoints, adapters, proposed tokens and prompt caches work together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_models import IDS, largest_error, write_adapter_of
from gguf_files import write_gguf
from own_provider import needs_own_provider

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError
from edgetie.export.exporter import export_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.decoding.prompt_cache import PromptCache
from edgetie.runtime.session import Session, open_session
from edgetie.sources.load import load_source

PROMPT = [5, 6, 7, 8, 5, 6]
SETTINGS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}

pytestmark = needs_own_provider


@dataclass
class Kept:
    """A bundle of a quantized checkpoint, with an adapter.

    Attributes:
        alone: the same bundle without an adapter.
        logits: of the adapted model in torch, on the dequantized weights.
    """

    directory: Path
    alone: Path
    logits: np.ndarray


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("kept")
    path = write_gguf(
        root / "model.gguf",
        tables=None,
        types=lambda name: "Q8_0" if name == "token_embd" else "Q4_1",
    )
    model = load_source(str(path), dequantize=True).module
    logits = write_adapter_of(model, root / "adapter", **SETTINGS)
    export_model(str(path), root / "alone")
    export_model(str(path), root / "adapted", adapters={"one": root / "adapter"})
    return Kept(root / "adapted", root / "alone", logits)


def tokens(session: Session, cache: PromptCache | None = None) -> list[int]:
    options: dict[str, Any] = {"stop_token_ids": frozenset(), "prompt_cache": cache}
    steps = generate(session, [PROMPT], max_new_tokens=40, **options)
    return [int(step.tokens[0]) for step in steps]


def test_an_adapter_over_a_quantized_checkpoint_is_pefts(kept: Kept) -> None:
    session = open_session(kept.directory, provider="edgetie")
    session.use_adapter("one")
    logits = Decoder(session, 1, 8).prefill(np.array([IDS]))
    assert largest_error(logits[0], kept.logits[-1]) < 5e-3
    session.use_adapter(None)
    base = Decoder(session, 1, 8).prefill(np.array([IDS]))
    assert largest_error(base[0], kept.logits[-1]) > 2e-2
    alone = Decoder(open_session(kept.alone, provider="edgetie"), 1, 8)
    np.testing.assert_array_equal(base, alone.prefill(np.array([IDS])))


def test_the_table_is_one_with_an_adapter(kept: Kept) -> None:
    adapted, alone = (open_bundle(each).manifest for each in (kept.directory, kept.alone))
    assert adapted.ties == alone.ties
    assert adapted.quantization == alone.quantization


@pytest.mark.parametrize("adapter", [None, "one"])
def test_proposed_tokens_and_a_prompt_cache_change_no_token(
    kept: Kept, adapter: str | None, tmp_path: Path
) -> None:
    plain, other = (open_session(kept.directory, speculate=each) for each in (False, None))
    assert other.speculates
    for session in (plain, other):
        session.use_adapter(adapter)
    expected = tokens(plain)
    assert tokens(other) == expected
    cache = PromptCache(tmp_path / "prompt.cache")
    assert tokens(other, cache) == expected
    assert tokens(other, cache) == expected
    assert cache.cached_tokens == len(PROMPT) - 1


def test_a_prompt_cache_of_another_adapter_is_refused(kept: Kept, tmp_path: Path) -> None:
    session = open_session(kept.directory)
    tokens(session, PromptCache(tmp_path / "prompt.cache"))
    session.use_adapter("one")
    with pytest.raises(BundleError, match=r"another model \(adapter: None, here one\)"):
        tokens(session, PromptCache(tmp_path / "prompt.cache"))
