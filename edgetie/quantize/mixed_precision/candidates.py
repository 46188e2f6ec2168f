"""A quantized bundle, any of whose weights can be had closer to the float model.

All forms of a weight are written once; a graph over some of them is made as often as one is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.graph.model_files import write_models
from edgetie.quantize.model_quantizer import ModelQuantizer, QuantizedModels

_ALIGN = 64
QUANTIZED, HIGHER_PRECISION, FLOAT = "codes.data", "finer.data", "floats.data"
"""Where weights lie while some may yet be taken back."""

Tensors = dict[str, ir.TensorProtocol]


class MixedPrecisionCandidates:
    """A quantized bundle, any of whose products can be had closer to the float model.

    Args:
        bundle: whose model files are replaced as often as something is tried.
        rounding: what makes its graphs.

    Attributes:
        bytes: what keeping a weight in floating point adds, by its name. A weight of several graphs
            is left out: they would part.
        finer_bytes: what its finer form adds.
        tables: matrices that rows are looked up in.
    """

    def __init__(self, bundle: Bundle, rounding: ModelQuantizer) -> None:
        self.bundle, self.rounding = bundle, rounding
        first = rounding.apply(again=True)
        self.tables = sorted({name for names in first.tables.values() for name in names})
        write_models(first.models, bundle.directory, data=QUANTIZED, same=first.same)
        self._codes = {file: _tensors(model) for file, model in first.models.items()}
        count = Counter(name for names in first.layers.values() for name in names)
        self._layers = {
            file: {name: parts for name, parts in names.items() if count[name] == 1}
            for file, names in first.layers.items()
        }
        self._higher_precision: dict[str, dict[str, Tensors]] = {file: {} for file in first.models}
        self._floats: dict[str, Tensors] = {file: {} for file in first.models}
        self.bytes: dict[str, int] = {}
        self.finer_bytes: dict[str, int] = {}

    def open(self) -> None:
        """Write all the forms that weights can be had in."""
        with (self.bundle.directory / FLOAT).open("wb") as stream:
            for file, layers in self._layers.items():
                values = self.rounding.models[file].graph.initializers
                for name in [*self.tables, *layers]:
                    tensor = values[name].const_value if name in values else None
                    if tensor is not None:
                        self._floats[file][name] = _written(stream, name, tensor)
                for name, parts in layers.items():
                    codes = sum(self._codes[file][part].nbytes for part in parts)
                    self.bytes[name] = self._floats[file][name].nbytes - codes
        if self.rounding.higher_precision is None:
            return
        names = [name for layers in self._layers.values() for name in layers]
        made = self.rounding.apply(higher_precision=names, again=True)
        write_models(made.models, self.bundle.directory, data=HIGHER_PRECISION, same=made.same)
        for file, layers in self._layers.items():
            tensors = _tensors(made.models[file])
            for name, parts in layers.items():
                higher_precision = {part: tensors[part] for part in made.layers[file][name]}
                added = sum(tensor.nbytes for tensor in higher_precision.values())
                codes = sum(self._codes[file][part].nbytes for part in parts)
                self._higher_precision[file][name], self.finer_bytes[name] = (
                    higher_precision,
                    added - codes,
                )

    def write(
        self, kept: Collection[str] = (), higher_precision: Collection[str] = ()
    ) -> QuantizedModels:
        """Replace the bundle's model files.

        Args:
            kept: weights in floating point.
            finer: weights in their finer form.
        """
        made = self.rounding.apply(kept, higher_precision, again=True)
        self._save(made.models, kept, higher_precision)
        return made

    def write_switched(self) -> None:
        """Replace the bundle's model files by some in which one product at a time can be rounded,
        as an input says: its index in ``bytes``.
        """
        models = self.rounding.toggle_graph(list(self.bytes), self._floats)
        self._save(models, self.tables)

    def _save(
        self,
        models: Mapping[str, ir.Model],
        kept: Collection[str],
        higher_precision: Collection[str] = (),
    ) -> None:
        """Write models, their initializers being those that are in the files already."""
        for file, model in models.items():
            known = dict(self._codes[file])
            for name in higher_precision:
                known |= self._higher_precision[file].get(name, {})
            known |= {name: tensor for name, tensor in self._floats[file].items() if name in kept}
            for name, value in model.graph.initializers.items():
                tensor = known.get(name)
                if tensor is not None and tensor.dtype == value.dtype:  # not what has 16 bits now
                    value.const_value = tensor
            ir.save(model, self.bundle.directory / file)


def _tensors(model: ir.Model) -> Tensors:
    values = model.graph.initializers.values()
    return {str(v.name): v.const_value for v in values if v.const_value is not None}


def _written(stream: BinaryIO, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """The same tensor in a file."""
    path = Path(stream.name)
    stream.write(bytes(-stream.tell() % _ALIGN))
    start = stream.tell()
    stream.write(np.ascontiguousarray(tensor.numpy()).data)
    return ir.ExternalTensor(
        path.name,
        start,
        tensor.nbytes,
        tensor.dtype,
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        base_dir=path.parent,
    )
