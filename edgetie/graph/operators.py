"""Name the operator of a node, whatever its domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_STANDARD_DOMAINS = ("", "ai.onnx", "com.microsoft")


def operator(node: ir.Node) -> str:
    """Return a node's operator type, with its domain as prefix unless ONNX or ONNX Runtime owns it.

    A ``MatMul`` of another domain need not multiply.
    """
    if node.domain in _STANDARD_DOMAINS:
        return node.op_type
    return f"{node.domain}::{node.op_type}"
