"""Export LoRA adapters with their base: checks, torch with an adapter, and the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetie.errors import ExportError, SourceError
from edgetie.export.tasks.base import Task
from edgetie.passes.add_adapter_inputs import AdaptedProduct
from edgetie.runtime.adapters import adapter_path, write_adapter
from edgetie.sources.peft_adapter import LowRankUpdate, PeftAdapter, read_peft_adapter
from edgetie.sources.source import Source

_MERGE = "merge it into its base (peft's merge_and_unload) and export the result"


@dataclass(frozen=True)
class Adapters:
    """Adapters of one base.

    Attributes:
        by_name: in the caller's order.
        widths: output channels of the base's linear layers, by their weights' names.
    """

    by_name: dict[str, PeftAdapter]
    widths: dict[str, int]

    @property
    def changed(self) -> list[str]:
        """The names of the weights that adapters change."""
        adapters = self.by_name.values()
        return list(dict.fromkeys(_weight(name) for each in adapters for name in each.updates))

    def write(self, directory: Path, products: Sequence[AdaptedProduct]) -> dict[str, Any]:
        """Write each adapter's file; returns what the manifest has of each."""
        for name, adapter in self.by_name.items():
            tensors: dict[str, NDArray[Any]] = {}
            for product in products:
                tensors |= self._tensors(adapter, product)
            write_adapter(adapter_path(directory, name), tensors)
        return {
            name: {"base": each.base, "rank": each.rank, "layers": len(each.updates)}
            for name, each in self.by_name.items()
        }

    def _tensors(self, adapter: PeftAdapter, product: AdaptedProduct) -> dict[str, NDArray[Any]]:
        """Join the updates of a product's parts; nothing if the adapter changes none of them."""
        start, downs, ups = 0, [], []
        total = sum(self.widths[part] for part in product.parts)
        for part in product.parts:
            update, end = adapter.updates.get(_module(part)), start + self.widths[part]
            if update is not None:
                up = np.zeros((len(update.up), total), product.dtype)
                up[:, start:end] = update.up
                downs.append(update.down.astype(product.dtype))
                ups.append(up)
            start = end
        if not downs:
            return {}
        return {product.down: np.hstack(downs), product.up: np.vstack(ups)}


def read_adapters(
    source: Source, task: Task, folders: Mapping[str, str | os.PathLike[str]]
) -> Adapters:
    """Read adapters of a model.

    Raises:
        SourceError: if one cannot be read or is not an adapter of this model.
        ExportError: if one changes the embedding table or the head, or the model has an encoder.
    """
    if folders and task.name != "causal-lm":
        raise ExportError(
            f"{source.name}: a model for {task.name}, and adapters are switched in decoders of "
            f"text (causal-lm) alone; {_MERGE}"
        )
    adapters = {name: read_peft_adapter(Path(folder)) for name, folder in folders.items()}
    for adapter in adapters.values():
        _require_base(source, adapter)
    widths = {
        _weight(name): sizes[1]
        for name, part in source.module.named_modules()
        if (sizes := _sizes(part)) is not None
    }
    return Adapters(adapters, widths)


@contextlib.contextmanager
def adapted(module: nn.Module, adapter: PeftAdapter) -> Iterator[None]:
    """Add an adapter's updates to the module's linear layers for a while."""
    with contextlib.ExitStack() as stack:
        for name, update in adapter.updates.items():
            hook = _add_update(update)
            handle = module.get_submodule(name).register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


def _add_update(update: LowRankUpdate) -> Any:
    down, up = (torch.from_numpy(np.ascontiguousarray(m)) for m in (update.down, update.up))

    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + inputs[0] @ down @ up

    return add


def _require_base(source: Source, adapter: PeftAdapter) -> None:
    """Check that the updates belong to linear layers of the model, and to no table."""
    modules = dict(source.module.named_modules())
    tables = {id(each) for each in _tables(source.module)}
    for name, update in adapter.updates.items():
        part, expected = modules.get(name), (len(update.down), update.up.shape[1])
        what = f"{adapter.directory}: changes {name}"
        origin = f"it is an adapter of {adapter.base}"
        if part is None:
            raise SourceError(f"{what}, which {source.name} does not have; {origin}")
        weight = getattr(part, "weight", None)
        if weight is not None and id(weight) in tables:
            raise ExportError(f"{what}, {_tie_advice(source.module, part)}")
        sizes = _sizes(part)
        if sizes is None:
            raise ExportError(f"{what}, which is not a linear layer; {_MERGE}")
        if sizes != expected:
            raise SourceError(
                f"{what}, from {expected[0]} to {expected[1]} channels, but that of {source.name} "
                f"is from {sizes[0]} to {sizes[1]}; {origin}"
            )


def _tables(module: nn.Module) -> Iterable[Any]:
    """The weights of embeddings and of the head."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    embeddings = (part for part in module.modules() if isinstance(part, nn.Embedding))
    parts = [part for part in (head, *embeddings) if part is not None]
    return [getattr(part, "weight", None) for part in parts]


def _tie_advice(module: nn.Module, part: nn.Module) -> str:
    """Say what becomes of the tie if an adapter of the table is merged."""
    weight = getattr(part, "weight", None)
    uses = sum(getattr(each, "weight", None) is weight for each in module.modules())
    if uses > 1:
        return (
            "whose weight is the tied embedding table: merged, it would change the embeddings and "
            "the head alike; train it without that layer, or untie the base (tie_word_embeddings "
            "false), merge it and export the result with two tables"
        )
    return f"which is an embedding table or the head; {_MERGE}"


def _sizes(part: nn.Module | None) -> tuple[int, int] | None:
    """Input and output channels of a linear layer; ``None`` of another module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    if isinstance(part, Conv1D):
        return part.weight.shape[0], part.weight.shape[1]
    return None


def _weight(module: str) -> str:
    return f"{module}.weight"


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
