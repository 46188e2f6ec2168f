"""Find the tied parameters of a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgetie.graph.constants import MIN_ELEMENTS

if TYPE_CHECKING:
    import torch


def tied_parameters(module: torch.nn.Module) -> list[tuple[str, ...]]:
    """Name the parameters of ``module`` that share storage, offset and shape, group by group.

    Shared storage is what a tie is in torch. Copies of equal value are found in the graph
    (:func:`equal_initializers`) and merged by the pass ``merge_duplicates``.
    """
    groups: dict[tuple[int, int, tuple[int, ...]], list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1 and parameter.numel() >= MIN_ELEMENTS:
            storage = parameter.untyped_storage()
            key = (storage._cdata, int(parameter.storage_offset()), tuple(parameter.shape))
            groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def has_tied_head(module: Any) -> bool | None:
    """Whether the head of a transformers model has the values of its embedding table.

    ``None`` if the model does not tell which its head and its table are.
    """
    import torch

    try:
        parts = module.get_input_embeddings(), module.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    table, head = (getattr(part, "weight", None) for part in parts)
    if not isinstance(table, torch.Tensor) or not isinstance(head, torch.Tensor):
        return None
    return table is head or torch.equal(table, head)


def partial_ties(module: torch.nn.Module) -> list[str]:
    """Describe each parameter of ``module`` that is a part of another one.

    ONNX has no view of a part of an initializer, so the part is stored again.
    """
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.numel() >= MIN_ELEMENTS:
            start = int(parameter.storage_offset())
            span = (start, start + parameter.numel(), name)
            spans.setdefault(parameter.untyped_storage()._cdata, []).append(span)
    descriptions = []
    for parts in spans.values():
        start, end, whole = max(parts, key=lambda part: part[1] - part[0])
        descriptions += [
            f"{name} is a part of {whole} and is stored again"
            for first, last, name in parts
            if name != whole and (first, last) != (start, end) and first < end and last > start
        ]
    return descriptions
