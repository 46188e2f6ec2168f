"""Operators by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_KNOWN = ("", "ai.onnx", "com.microsoft")


def operator(node: ir.Node) -> str:
    """A node's operator; of a domain that is neither ONNX's nor ONNX Runtime's with that in front:
    what is called MatMul there need not multiply.
    """
    return node.op_type if node.domain in _KNOWN else f"{node.domain}::{node.op_type}"
