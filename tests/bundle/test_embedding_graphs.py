"""Graphs that read embeddings give the decoder's logits, and store no weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from image_models import TOKEN, build, export, gemma3, llava, paligemma, qwen3_vl

from edgetie.bundle.embedding_graphs import EMBED, EMBEDDING, VISION, write_embedding_graphs
from edgetie.bundle.merged_decoder import MERGED
from edgetie.bundle.names import DECODER, ENCODER, GRID, PIXELS
from edgetie.graph.external_data import byte_range
from edgetie.quantize.quantizer import quantize_model

WRITTEN = (VISION, EMBED, EMBEDDING, MERGED)
Feeds = dict[str, np.ndarray]


@pytest.fixture(
    scope="module",
    params=[(llava, 16), (paligemma, 16), (gemma3, 16 + 1), (qwen3_vl, 2 * 16 + 1)],
    ids=lambda param: param[0].__name__,
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, int]:
    """A bundle in fp32 and int8, and the columns of its embeddings."""
    make, columns = request.param
    root = tmp_path_factory.mktemp(make.__name__)
    config = make()
    config.text_config.vocab_size = 96  # so that no int8 table is small enough for a model file
    export(build(config), root / "fp32")
    quantize_model(root / "fp32", root / "int8")
    return root, columns


def run(path: Path, feeds: Feeds) -> Feeds:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    used = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, used), strict=True))


def pixels(encoder: Path) -> Feeds:
    """One image of noise."""
    inputs = ir.load(encoder).graph.inputs
    (shape,) = (value.shape for value in inputs if value.name == PIXELS)
    sizes = {"patches": 16, "images": 1}
    dims = [d if isinstance(d, int) else sizes[str(d.value)] for d in shape or ()]
    image = np.random.default_rng(0).standard_normal(dims, np.float32)
    return {PIXELS: image, GRID: np.array([[1, 4, 4]])}


def empty_cache(decoder: Path) -> Feeds:
    return {
        str(value.name): np.zeros([2, 2, 0, 8], np.float32)
        for value in ir.load(decoder).graph.inputs
        if str(value.name).startswith("past_key_values.")
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_prompts_of_a_batch_and_a_step(exported: tuple[Path, int], precision: str) -> None:
    """An image is in both prompts, of which one is padded on the left."""
    bundle, columns = exported[0] / precision, exported[1]
    image = pixels(bundle / ENCODER)
    rows = run(bundle / ENCODER, image)
    features = run(bundle / VISION, image)
    count, width = features["image_features"].shape
    assert (count, width) == (len(rows["image_embeds"]), columns)
    prompts = [1, 2, 3, *[TOKEN] * (count - 1), 4], [TOKEN, 5]
    longest = len(prompts[0])
    ids = np.array([[0] * (longest - len(each)) + each for each in prompts])
    mask = np.array([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    cache = empty_cache(bundle / DECODER)
    for tokens in (ids, np.array([[7], [8]])):
        positions = np.stack([np.maximum(mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]] * 3)
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **cache}
        expected = run(bundle / DECODER, feeds | rows)
        embeds = run(bundle / EMBEDDING, feeds | features)
        embeds_of_text = run(bundle / EMBED, feeds)["inputs_embeds"]
        embeds_of_text[tokens == TOKEN] = features["image_features"]
        np.testing.assert_array_equal(embeds_of_text, embeds["inputs_embeds"])
        results = run(bundle / MERGED, feeds | embeds)
        for name, value in expected.items():
            np.testing.assert_allclose(results[name], value, atol=1e-5, err_msg=name)
        cache = {
            name.replace("present", "past_key_values"): value
            for name, value in expected.items()
            if name != "logits"
        }
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        rows, features = ({n: v[:0] for n, v in each.items()} for each in (rows, features))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_weight_is_stored_again(exported: tuple[Path, int], precision: str) -> None:
    bundle = exported[0] / precision
    ranges, small = {}, {}
    for name in (ENCODER, DECODER, *WRITTEN):
        weights = list(ir.load(bundle / name).graph.initializers.values())
        ranges[name] = {r for value in weights if (r := byte_range(value)) is not None}
        sizes = [v.const_value.nbytes for v in weights if v.const_value and not byte_range(v)]
        small[name] = max(sizes, default=0)
    for name in WRITTEN:
        assert ranges[name], name
        assert ranges[name] <= ranges[ENCODER] | ranges[DECODER], name
    assert max(small.values()) <= 1024
    assert ranges[EMBED] <= ranges[MERGED]  # the head reads the table too


def test_a_decoder_that_reads_no_images(tmp_path: Path) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    for name in (ENCODER, DECODER):
        ir.save(model, tmp_path / name)
    assert write_embedding_graphs(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {ENCODER, DECODER}
