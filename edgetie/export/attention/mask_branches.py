"""Branches that a model takes on its mask, answered once for every mask.

``torch.export`` cannot follow ``if mask.any():``, as the answer depends on data. Where a question
depends on nothing but the attention mask, and every kind of mask of zeros and ones has the same
answer, that answer is the branch. Longformer asks so for tokens with global attention, which a mask
of zeros and ones does not name. Any other question is torch's to refuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

_ASKING = (torch.Tensor.item, torch.Tensor.__bool__)


class MaskQuestions(TorchFunctionMode):
    """Answers what a model asks about its mask while it is traced.

    Args:
        mask: ``(batch, sequence)``, the traced input; ``None`` if the model reads none.
    """

    def __init__(self, mask: torch.Tensor | None) -> None:
        super().__init__()
        self._mask = mask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKING and args[0].dtype is torch.bool and self._mask is not None:
            answers = _answers(args[0], self._mask)
            if len(answers) == 1:
                return answers.pop()
        return func(*args, **(kwargs or {}))


def _answers(question: torch.Tensor, mask: torch.Tensor) -> set[bool]:
    """The different answers for masks of the traced shape; none if more than the mask decides."""
    mode = get_proxy_mode()
    if mode is None:
        return set()
    tracer: Any = mode.tracer
    slots = [get_proxy_slot(tensor, tracer, None) for tensor in (question, mask)]
    asked, given = (slot.proxy.node if slot is not None else None for slot in slots)
    nodes = _between(asked, given) if asked is not None and given is not None else None
    if nodes is None:
        return set()
    rows, count = (_size(size) for size in mask.shape)
    with _disable_current_modes(), torch.no_grad():
        return {
            bool(_run(nodes, {given: trial.expand(rows, count).to(mask.dtype)}, tracer.root))
            for trial in _masks(count)
        }


def _masks(count: int) -> list[torch.Tensor]:
    """Rows of every kind: full, empty, padded on either side, with holes."""
    ones, places = torch.ones(count, dtype=torch.long), torch.arange(count)
    half = (places < (count + 1) // 2).long()
    return [ones, 0 * ones, half, half.flip(0), places % 2, (places == 0).long()]


def _between(asked: torch.fx.Node, given: torch.fx.Node) -> list[torch.fx.Node] | None:
    """The nodes from ``given`` to ``asked`` in order; ``None`` if other data takes part."""
    wanted, todo = {given}, [asked]
    while todo:
        node = todo.pop()
        if node in wanted or isinstance(node.meta.get("val"), torch.SymInt):
            continue
        if node.op not in ("call_function", "get_attr"):
            return None
        wanted.add(node)
        todo += node.all_input_nodes
    for node in asked.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        writes = schema is not None and schema.is_mutable
        if writes and node not in wanted and wanted & set(node.all_input_nodes):
            return None
    return [node for node in asked.graph.nodes if node in wanted and node is not given]


def _run(nodes: list[torch.fx.Node], values: dict[Any, Any], root: Any) -> Any:
    """What the last of ``nodes`` computes."""

    def value(node: torch.fx.Node) -> Any:
        return values[node] if node in values else _size(node.meta["val"])

    for node in nodes:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
        target: Any = node.target
        values[node] = target(*args, **kwargs) if node.op != "get_attr" else getattr(root, target)
    return values[nodes[-1]]


def _size(size: Any) -> int:
    """A size as it is in the example."""
    return size if isinstance(size, int) else int(size.node.hint)
