"""Which execution provider runs which nodes of a session."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgetie.errors import ProviderError
from edgetie.providers.registry import Provider


def placement(wanted: str, *sessions: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Nodes by provider, and by operator those of any other than ``wanted``, most first.

    Args:
        wanted: ONNX Runtime's name of a provider.
        sessions: its sessions, which recorded what it assigned; ``None`` is passed over.
    """
    nodes: Counter[str] = Counter()
    fallback_nodes: Counter[str] = Counter()
    for session in sessions:
        for part in session.get_provider_graph_assignment_info() if session is not None else ():
            found = part.get_nodes()
            nodes[part.ep_name] += len(found)
            if part.ep_name != wanted:
                fallback_nodes.update(node.op_type for node in found)
    return dict(nodes), dict(fallback_nodes.most_common())


def placed(nodes: dict[str, int], fallback_nodes: dict[str, int]) -> str:
    """How many nodes run elsewhere than asked, in words: ``2 of 9 nodes to others (Abs 2)``."""
    operators = ", ".join(f"{name} {count}" for name, count in fallback_nodes.items())
    return f"{sum(fallback_nodes.values())} of {sum(nodes.values())} nodes to others ({operators})"


def require_placed(
    row: Provider,
    path: Path,
    nodes: dict[str, int],
    fallback_nodes: dict[str, int],
    *,
    strict: bool,
) -> None:
    """Check that a provider took nodes of a model, or all of them if ``strict``.

    Raises:
        ProviderError: if it did not.
    """
    if not nodes.get(row.ort_name):
        raise ProviderError(
            f"--provider {row.name}: took none of the {sum(nodes.values())} nodes of {path}; "
            "use another provider"
        )
    if strict and fallback_nodes:
        raise ProviderError(
            f"--strict: {path}: {row.name} leaves {placed(nodes, fallback_nodes)}; allow that, or "
            f"quantize for it: edgetie quantize --target {row.target}"
        )
