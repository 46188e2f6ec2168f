"""EmbedLayerNormalization becomes look-ups, a sum and a LayerNormalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import WIDTH, graph, node, random, rewrite

from edgetie.passes.split_embed_layer_norm import SplitEmbedLayerNorm

IDS = np.array([[3, 0, 7, 1], [2, 2, 5, 6]], np.int32)
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
TABLES = {
    "words": random(20, WIDTH), "positions": random(16, WIDTH, seed=1),
    "kinds": random(2, WIDTH, seed=2), "gamma": random(WIDTH, seed=3),
    "beta": random(WIDTH, seed=4),
}  # fmt: skip


def embedded(inputs: list[str], nodes: list[Any], outputs: list[str], shape: list[int]) -> ir.Model:
    embed = node(
        "EmbedLayerNormalization", inputs, outputs, domain="com.microsoft", epsilon=1e-3,
        mask_index_type=1,
    )  # fmt: skip
    feeds = {name: [2, 4] for name in ("ids", "segments", "mask", "places") if name in inputs}
    types = dict.fromkeys(feeds, TensorProto.INT32)
    return graph([embed, *nodes], TABLES, feeds, shape, types=types)


@pytest.mark.parametrize(
    "inputs",
    [
        ["ids", "", "words", "positions", "", "gamma", "beta"],
        ["ids", "segments", "words", "positions", "kinds", "gamma", "beta"],
        ["ids", "segments", "words", "positions", "kinds", "gamma", "beta", "mask", "places"],
    ],
    ids=["tokens", "segments", "positions"],
)
def test_embeddings(inputs: list[str]) -> None:
    feeds = {"ids": IDS, "segments": IDS % 2, "mask": MASK, "places": IDS + 8}
    model = embedded(inputs, [], ["y", "count"], [2, 4, WIDTH])
    feeds = {name: array for name, array in feeds.items() if name in inputs}
    operators = rewrite(model, SplitEmbedLayerNorm(), **feeds)
    assert operators["Gather"] >= 2
    assert operators["LayerNormalization"] == 1


def test_the_sum_is_an_output_too() -> None:
    inputs = ["ids", "", "words", "positions", "", "gamma", "beta"]
    nodes = [node("Add", ["normed", "sum"], ["y"])]
    model = embedded(inputs, nodes, ["normed", "count", "sum"], [2, 4, WIDTH])
    rewrite(model, SplitEmbedLayerNorm(), ids=IDS)


def test_the_count_of_tokens_is_an_output_too() -> None:
    inputs = ["ids", "", "words", "positions", "", "gamma", "beta", "mask"]
    nodes = [node("Cast", ["count"], ["y"], to=TensorProto.FLOAT)]
    model = embedded(inputs, nodes, ["normed", "count"], [2])
    rewrite(model, SplitEmbedLayerNorm(), ids=IDS, mask=MASK)
