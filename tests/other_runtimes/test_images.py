"""Other people's runtimes read models of images, and give the same greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import onnxruntime_genai as og
import pytest
from image_to_text_models import build, donut, source_of, trocr, vit_gpt2
from starters import run

from edgetie.bundle.names import GRID, PIXELS
from edgetie.export.exporter import export_model
from edgetie.prune.pruner import prune_vocabulary
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import GREEDY, continue_prompt, generate_from_images
from edgetie.runtime.images.embeddings import embed_images, random_image
from edgetie.runtime.session import open_session

pytestmark = pytest.mark.slow

TOKENS = 12
SIZES = {"images": 1, "patches": 24, "height": 16, "width": 24}
SCRIPT = Path(__file__).parents[1] / "support" / "images_js.mjs"
IN_GENAI = ("gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl")
PRECISIONS = ("fp32", "int8")
PRUNED = [("gemma3", "pruned"), ("qwen2_5_vl", "pruned")]
IN_TRANSFORMERS_JS = (*IN_GENAI, "llava", "paligemma", "smolvlm")
Feeds = dict[str, np.ndarray]
Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Small vision-language models in fp32 and int8, and with fewer tokens."""
    root = tmp_path_factory.mktemp("bundles")

    def get(kind: str) -> Path:
        if not (root / kind).is_dir():
            model = image_models.liven(image_models.build(getattr(image_models, kind)()))
            image_models.export(model, root / kind / "fp32")
            quantize_model(root / kind / "fp32", root / kind / "int8")
            if (kind, "pruned") in PRUNED:
                kept = [*range(5, 40), image_models.START]
                prune_vocabulary(root / kind / "fp32", root / kind / "pruned", keep_tokens=kept)
        return root / kind

    return get


@dataclass
class Answer:
    """A prompt about an image of noise, what edgetie answers, and what an encoder reads."""

    prompt: np.ndarray
    logits: np.ndarray
    tokens: list[int]
    image_tokens: int
    image: Feeds


def ours(bundle: Path, seed: int = 0) -> Answer:
    session = open_session(bundle, provider="cpu")
    assert session.bundle.manifest.encoder is not None
    inputs = {value.name: value for value in session.bundle.manifest.encoder.inputs}
    grid = {GRID: np.array([[1, 4, 6]])} if GRID in inputs else {}
    sizes = [SIZES.get(each, each) for each in inputs[PIXELS].shape]
    image = {PIXELS: np.random.default_rng(seed).standard_normal(sizes, np.float32), **grid}
    embeddings = embed_images(session, [image])
    places = [image_models.TOKEN] * embeddings.count
    prompt = np.array([[5, 6, image_models.START, *places, 7, 8, 9, 10]])
    if (kept := bundle / "kept_tokens.txt").is_file():
        numbers = {int(old): new for new, old in enumerate(kept.read_text("utf-8").split())}
        prompt = np.vectorize(numbers.__getitem__)(prompt)
    decoder = Decoder(session, 1, prompt.shape[1] + TOKENS)
    logits = decoder.prefill(prompt, image_embeddings=embeddings)
    steps = continue_prompt(decoder, logits, TOKENS, GREEDY, None)
    tokens = [int(step.tokens[0]) for step in steps]
    assert len(tokens) == TOKENS
    assert len(set(tokens)) > 1
    return Answer(prompt, logits, tokens, embeddings.count, image)


@pytest.mark.parametrize(("kind", "precision"), [*product(IN_TRANSFORMERS_JS, PRECISIONS), *PRUNED])
def test_transformers_js(
    kind: str, precision: str, bundles: Bundles, node: Path, tmp_path: Path
) -> None:
    bundle = bundles(kind) / precision
    answer = ours(bundle)
    mask = np.ones_like(answer.prompt)
    feeds = {"input_ids": answer.prompt, "attention_mask": mask, **answer.image}
    assert in_transformers_js(bundle, feeds, node, tmp_path)[-TOKENS:] == answer.tokens
    assert np.abs(ours(bundle, seed=1).logits - answer.logits).max() > 1e-2  # the image counts


def in_transformers_js(bundle: Path, feeds: Feeds, node: Path, folder: Path) -> list[int]:
    tensors = {
        name: [
            "int64" if value.dtype.kind == "i" else "float32",
            value.shape,
            value.ravel().tolist(),
        ]
        for name, value in feeds.items()
    }
    path = folder / "feeds.json"
    path.write_text(json.dumps(tensors))
    found: list[int] = json.loads(run(["node", SCRIPT, node, bundle, TOKENS, path], node.parent))
    return found


@pytest.mark.parametrize("make", [trocr, donut, vit_gpt2])
def test_texts_of_images_in_transformers_js(make: Any, node: Path, tmp_path: Path) -> None:
    model = build(make)
    export_model(source_of(model), tmp_path / "fp32")
    quantize_model(tmp_path / "fp32", tmp_path / "int8")
    for bundle in (tmp_path / "fp32", tmp_path / "int8"):
        session = open_session(bundle, provider="cpu")
        random = np.random.default_rng(0)
        image = random_image(session.encoder, session.bundle.manifest.signature, random)
        steps = generate_from_images(
            session, image, max_new_tokens=TOKENS, stop_token_ids=frozenset()
        )
        tokens = [int(step.tokens[0]) for step in steps]
        assert len(set(tokens)) > 1
        assert in_transformers_js(bundle, image, node, tmp_path)[-TOKENS:] == tokens


@pytest.mark.parametrize(("kind", "precision"), [*product(IN_GENAI, PRECISIONS), *PRUNED])
def test_onnxruntime_genai(kind: str, precision: str, bundles: Bundles) -> None:
    bundle = bundles(kind) / precision
    answer = ours(bundle)
    model = og.Model(str(bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=answer.prompt.shape[1] + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    inputs = og.NamedTensors()
    inputs["input_ids"] = answer.prompt.astype(np.int32)
    inputs["num_image_tokens"] = np.array([answer.image_tokens])
    for name, value in answer.image.items():
        inputs[name] = value
    generator.set_inputs(inputs)
    theirs: list[int] = []
    while not generator.is_done() and len(theirs) < TOKENS:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == answer.tokens


def test_types_that_onnxruntime_genai_does_not_know(bundles: Bundles) -> None:
    with pytest.raises(RuntimeError, match="llava"):
        og.Model(str(bundles("llava") / "fp32"))
