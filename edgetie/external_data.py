"""External data: weights in one file beside the model, each tensor written once, streamed.

``onnx.save`` and ``onnx_ir.save`` split byte ranges that two tensors share; this writer keeps them,
and evaluates a lazy tensor only when its turn comes, so memory holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle import DATA, MODEL
from edgetie.report.progress import Progress

_INLINE_BYTES = 1024  # smaller tensors stay in the model file
_ALIGN = 64
_ALIGN_LARGE = 4096  # a page: large tensors can be mapped and released on their own
_LARGE_BYTES = 1 << 20


def write_model(
    model: ir.Model,
    directory: Path,
    *,
    aliases: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``directory``.

    Args:
        model: its large initializers become references into the data file.
        directory: must exist; files of these names are replaced.
        aliases: initializers that share the bytes of another: name to name. They must have the
            same number of bytes, e.g. one table seen in two shapes.
        progress: told how many bytes are written.

    Returns:
        The path of the model file.
    """
    aliases = aliases or {}
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _INLINE_BYTES
    ]
    own = [v.const_value for v in values if v.name not in aliases and v.const_value is not None]
    total = sum(tensor.nbytes for tensor in own)
    ranges: dict[str, tuple[int, int]] = {}
    with (directory / DATA).open("wb") as file:
        for value in values:
            name, tensor = str(value.name), value.const_value
            assert tensor is not None
            if name in aliases:
                continue
            align = _ALIGN_LARGE if tensor.nbytes >= _LARGE_BYTES else _ALIGN
            file.write(bytes(-file.tell() % align))
            start = file.tell()
            file.write(np.ascontiguousarray(tensor.numpy()).data)
            ranges[name] = start, file.tell() - start
            _refer(value, directory, *ranges[name])
            if progress is not None:
                progress.advance(file.tell() >> 20, total >> 20)
    for value in values:
        if value.name in aliases:
            _refer(value, directory, *ranges[aliases[str(value.name)]])
    ir.save(model, directory / MODEL)
    return directory / MODEL


def _refer(value: ir.Value, directory: Path, offset: int, length: int) -> None:
    """Point an initializer at a byte range of the data file."""
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.ExternalTensor(
        DATA,
        offset,
        length,
        tensor.dtype,
        name=str(value.name),
        shape=ir.Shape(tensor.shape.numpy()),
        base_dir=directory,
    )
