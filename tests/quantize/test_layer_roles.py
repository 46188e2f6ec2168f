"""Roles of linear layers, on small graphs and on exported models."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from attention_graph import attention_graph
from small_graphs import SHAPE, graph, node, random

from edgetie.passes.base import run_passes
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.quantize.layer_roles import ROLES, weights_with_roles
from edgetie.targets import SCHEMES


def test_schemes_name_roles() -> None:
    assert {role for row in SCHEMES.values() for role in row.higher_precision} == ROLES.keys()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("packed", "weights"), [(False, {"q"}), (True, {"qkv"})])
def test_what_attention_reads(packed: bool, weights: set[str], bias: bool) -> None:
    model = attention_graph(packed=packed, bias=bias)
    assert weights_with_roles(model.graph, ["attention"]) == weights  # others are too small
    assert weights_with_roles(model.graph, []) == set()


def gate(shapes: dict[str, Any], second: str = "up") -> ir.Model:
    nodes = [
        node("MatMul", ["x", "u"], ["up"]),
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["gate", second], ["h"]),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    constants = {"u": random(64, 64), "w": random(64, 64), "one": random(64), "scale": random(1)}
    return graph(nodes, constants, shapes=shapes)


def test_what_reads_the_product_of_a_gate() -> None:
    model = gate({"up": SHAPE, "gate": SHAPE})
    assert weights_with_roles(model.graph, ["gated"]) == {"w"}
    assert weights_with_roles(model.graph, ["attention"]) == set()


def test_a_scaled_activation_is_no_gate() -> None:
    by_constant = gate({"gate": SHAPE}, second="one")
    assert weights_with_roles(by_constant.graph, ["gated"]) == set()
    by_token = gate({"gate": ["batch", "sequence", 1], "up": SHAPE})
    assert weights_with_roles(by_token.graph, ["gated"]) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "gated"), [("Llama", 2), ("Qwen3", 2), ("Gemma3Text", 2), ("GPT2", 0)]
)
def test_roles_in_exported_models(float_bundle: Any, kind: str, gated: int) -> None:
    model = ir.load(float_bundle(kind) / "model.onnx")
    run_passes(model, [], [GemmToMatMul(), RemoveFlattenReshapes()])
    attention = weights_with_roles(model.graph, ["attention"])
    found = weights_with_roles(model.graph, ["gated"])
    assert len(attention) == 2  # queries, keys and values of each layer are one weight
    assert all("attn" in name for name in attention)
    assert len(found) == gated
    assert all("down_proj" in name for name in found)
