"""Which execution provider runs which nodes of a session."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetie.errors import ProviderError
from edgetie.providers.registry import AUTO, PROVIDERS, Provider, find_provider

_PRODUCTS = {
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits", "DynamicQuantizeMatMul", "Conv",
    "FusedConv", "GroupQueryAttention", "MultiHeadAttention", "Attention", "Round",
}  # fmt: skip
"""Operators that add up products, in an order that depends on how many rows there are.

Round splits activations in two parts, which doubles the rows of the product after it.
"""


def count_nodes(ort_name: str, *sessions: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Count nodes by provider, and nodes on any provider but ``ort_name`` by operator.

    Args:
        ort_name: ONNX Runtime's name of a provider.
        sessions: sessions that recorded the assignment of their nodes; ``None`` is skipped.
    """
    nodes: Counter[str] = Counter()
    fallback_nodes: Counter[str] = Counter()
    for session in sessions:
        for part in session.get_provider_graph_assignment_info() if session is not None else ():
            assigned = part.get_nodes()
            nodes[part.ep_name] += len(assigned)
            if part.ep_name != ort_name:
                fallback_nodes.update(node.op_type for node in assigned)
    return dict(nodes), dict(fallback_nodes.most_common())


def find_operators(*sessions: Any) -> dict[str, set[str]]:
    """Name the operators that each provider runs; ``None`` is skipped."""
    operators: dict[str, set[str]] = {}
    for session in sessions:
        for part in session.get_provider_graph_assignment_info() if session is not None else ():
            operators.setdefault(part.ep_name, set()).update(n.op_type for n in part.get_nodes())
    return operators


def runs_all_products(ort_name: str, operators: Mapping[str, set[str]]) -> bool:
    """Whether a provider runs MatMulNBits, and others no product that rounds."""
    others = {op for name, names in operators.items() if name != ort_name for op in names}
    return "MatMulNBits" in operators.get(ort_name, ()) and not others & _PRODUCTS


def resolve_provider(name: str, nodes: dict[str, int]) -> Provider:
    """Return the provider that ran a model, by its nodes: that of ``auto`` depends on them."""
    row = find_provider(name)
    is_idle = name.lower() == AUTO and not nodes.get(row.ort_name)
    return PROVIDERS["cpu"] if is_idle else row


def describe_placement(name: str, nodes: dict[str, int]) -> str:
    """Describe a provider and its nodes: ``edgetie (213 of 245 nodes)``."""
    count = nodes.get(find_provider(name).ort_name, 0)
    return f"{name} ({count} of {sum(nodes.values())} nodes)"


def describe_fallback(nodes: dict[str, int], fallback_nodes: dict[str, int]) -> str:
    """Describe nodes on other providers: ``2 of 9 nodes to others (Abs 2)``."""
    operators = ", ".join(f"{name} {count}" for name, count in fallback_nodes.items())
    return f"{sum(fallback_nodes.values())} of {sum(nodes.values())} nodes to others ({operators})"


def require_placement(
    row: Provider,
    path: Path,
    nodes: dict[str, int],
    fallback_nodes: dict[str, int],
    *,
    strict: bool,
) -> None:
    """Check that a provider runs nodes of a model, or all of them if ``strict``.

    Raises:
        ProviderError: if it does not.
    """
    if not nodes.get(row.ort_name):
        raise row.error(
            f"took none of the {sum(nodes.values())} nodes of {path}; use another provider"
        )
    if strict and fallback_nodes:
        raise ProviderError(
            f"{path}: {row.name} leaves {describe_fallback(nodes, fallback_nodes)}; allow that, or "
            f"quantize for target {row.target}",
            parameter="strict",
        )
