"""Find tied parameters of a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.graph.constants import MIN_ELEMENTS

if TYPE_CHECKING:
    import torch


def tied_parameters(module: torch.nn.Module) -> list[tuple[str, ...]]:
    """Names of the parameters of ``module`` that share storage, offset and shape, group by group.

    Equal storage is the definition of a tie in torch; a copy of equal value is found in the graph
    (:func:`equal_initializers`) and merged by the ``retie`` pass.
    """
    groups: dict[tuple[int, int, tuple[int, ...]], list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1 and parameter.numel() >= MIN_ELEMENTS:
            storage = parameter.untyped_storage()
            key = (storage._cdata, int(parameter.storage_offset()), tuple(parameter.shape))
            groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def partial_ties(module: torch.nn.Module) -> list[str]:
    """Parameters of ``module`` that are parts of another one, in words.

    ONNX has no view of a part of an initializer, so a part is stored again; this says which.
    """
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.numel() >= MIN_ELEMENTS:
            start = int(parameter.storage_offset())
            span = (start, start + parameter.numel(), name)
            spans.setdefault(parameter.untyped_storage()._cdata, []).append(span)
    found = []
    for parts in spans.values():
        start, end, whole = max(parts, key=lambda part: part[1] - part[0])
        found += [
            f"{name} is a part of {whole} and is stored again"
            for first, last, name in parts
            if name != whole and (first, last) != (start, end) and first < end and last > start
        ]
    return found
