"""Operators of foreign domains are not those of ONNX."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgetie.graph.operators import operator


@pytest.mark.parametrize(
    ("domain", "name"),
    [("", "MatMul"), ("ai.onnx", "MatMul"), ("com.microsoft", "MatMul"), ("my", "my::MatMul")],
)
def test_the_domain_is_a_prefix_unless_onnx_owns_it(domain: str, name: str) -> None:
    assert operator(ir.node("MatMul", [], domain=domain)) == name
