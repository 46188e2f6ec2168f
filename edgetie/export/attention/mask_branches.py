"""Resolve branches on the attention mask, such as Longformer's, whose condition never changes."""

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

_CONDITIONS = (torch.Tensor.item, torch.Tensor.__bool__)


class ResolveMaskBranches(TorchFunctionMode):
    """Evaluate conditions on the mask while a model is traced.

    ``torch.export`` cannot trace ``if mask.any():``. A condition that depends on the mask alone and
    has one value for every kind of mask of zeros and ones is that value.

    Args:
        mask: ``(batch, sequence)``, the traced input; ``None`` if the model does not read one.
    """

    def __init__(self, mask: torch.Tensor | None) -> None:
        super().__init__()
        self._mask = mask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONDITIONS and args[0].dtype is torch.bool and self._mask is not None:
            outcomes = _outcomes(args[0], self._mask)
            if len(outcomes) == 1:
                return outcomes.pop()
        return func(*args, **(kwargs or {}))


def _outcomes(condition: torch.Tensor, mask: torch.Tensor) -> set[bool]:
    """Evaluate for masks of the traced shape; nothing if the condition depends on other data."""
    mode = get_proxy_mode()
    if mode is None:
        return set()
    tracer: Any = mode.tracer
    slots: list[Any] = [get_proxy_slot(tensor, tracer, None) for tensor in (condition, mask)]
    if None in slots:
        return set()
    target, source = (slot.proxy.node for slot in slots)
    nodes = _between(source, target)
    if nodes is None:
        return set()
    batch, length = (_example_size(size) for size in mask.shape)
    with _disable_current_modes(), torch.no_grad():
        return {
            bool(_run(nodes, {source: trial.expand(batch, length).to(mask.dtype)}, tracer.root))
            for trial in _trial_masks(length)
        }


def _trial_masks(length: int) -> list[torch.Tensor]:
    """Masks of every kind: full, empty, padded on either side, with holes."""
    ones, positions = torch.ones(length, dtype=torch.long), torch.arange(length)
    half = (positions < (length + 1) // 2).long()
    return [ones, 0 * ones, half, half.flip(0), positions % 2, (positions == 0).long()]


def _between(source: torch.fx.Node, target: torch.fx.Node) -> list[torch.fx.Node] | None:
    """The nodes from ``source`` to ``target`` in order; ``None`` if other data takes part."""
    nodes, waiting = {source}, [target]
    while waiting:
        node = waiting.pop()
        if node in nodes or isinstance(node.meta.get("val"), torch.SymInt):
            continue
        if node.op not in ("call_function", "get_attr"):
            return None
        nodes.add(node)
        waiting += node.all_input_nodes
    for node in target.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        writes = schema is not None and schema.is_mutable
        if writes and node not in nodes and nodes & set(node.all_input_nodes):
            return None
    return [node for node in target.graph.nodes if node in nodes and node is not source]


def _run(nodes: list[torch.fx.Node], values: dict[Any, Any], root: Any) -> Any:
    """Compute the last of ``nodes``."""

    def value(node: torch.fx.Node) -> Any:
        return values[node] if node in values else _example_size(node.meta["val"])

    for node in nodes:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
        target: Any = node.target
        values[node] = target(*args, **kwargs) if node.op != "get_attr" else getattr(root, target)
    return values[nodes[-1]]


def _example_size(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)
