"""The settings of a starter, as far as they come from a model's own settings for generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runtime_models as tiny

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import bare_manifest
from edgetie.deploy.app_settings import app_settings
from edgetie.deploy.chat_format import read_chat_format
from edgetie.errors import BundleError
from edgetie.runtime.text.tokenizer import Tokenizer


def settings_of(directory: Path, **generation: object) -> dict[str, Any]:
    """The settings of a chat model with these settings for generation."""
    bundle = open_bundle(tiny.write_chat_bundle(directory))
    bundle.manifest.signature.inputs = bare_manifest(bundle.model_path).signature.inputs
    (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    tokenizer = Tokenizer.from_bundle(bundle)
    chat = read_chat_format(directory, tokenizer)
    return app_settings(bundle, tokenizer, chat, ort_format=False)


@pytest.mark.parametrize(
    ("generation", "temperature", "top_k", "top_p", "penalty"),
    [
        ({}, 0.0, None, None, 1.0),
        ({"temperature": 0.7, "top_k": 20}, 0.0, None, None, 1.0),  # do_sample is not stated
        ({"do_sample": True}, 1.0, 50, None, 1.0),  # transformers' defaults
        ({"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9}, 0.6, None, 0.9, 1.0),
        ({"do_sample": False, "repetition_penalty": 1.2}, 0.0, None, None, 1.2),
    ],
)
def test_sampling_is_that_of_the_model(
    tmp_path: Path, generation: dict[str, object], temperature: float, top_k: int | None,
    top_p: float | None, penalty: float,
) -> None:  # fmt: skip
    app = settings_of(tmp_path / "bundle", **generation)
    assert app["sampling"] == {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty,
    }  # fmt: skip


@pytest.mark.parametrize(("stated", "stops"), [("###", ["###"]), (["a", "b"], ["a", "b"])])
def test_stop_strings_are_those_of_the_model(
    tmp_path: Path, stated: object, stops: list[str]
) -> None:
    assert settings_of(tmp_path / "bundle", stop_strings=stated)["stop_strings"] == stops


@pytest.mark.parametrize(
    "generation",
    [
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "top_p": "most"},
        {"repetition_penalty": 0},
        {"stop_strings": [1]},
    ],
)
def test_wrong_settings_are_refused_by_their_file(
    tmp_path: Path, generation: dict[str, object]
) -> None:
    with pytest.raises(BundleError, match=r"generation_config\.json: .*; correct it in the model"):
        settings_of(tmp_path / "bundle", **generation)
