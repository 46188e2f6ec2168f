"""External data: weights in one file beside the model, each tensor written once, streamed.

``onnx.save`` and ``onnx_ir.save`` split byte ranges that two tensors share; this writer keeps them,
and evaluates a lazy tensor only when its turn comes, so memory holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from edgetie.errors import BundleError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.external_data import byte_range
from edgetie.progress import Progress

_INLINE_BYTES = 1024  # smaller tensors stay in the model file
_ALIGN = 64
_ALIGN_LARGE = 4096  # a page: large tensors can be mapped and released on their own
_LARGE_BYTES = 1 << 20
_INITIALIZERS_ALONE = 4  # the IR version from which on they need not be inputs


def load_model(path: Path) -> ir.Model:
    """An ONNX file, its weights left in theirs.

    Symbolic links to data are followed, as ONNX Runtime does: caches of downloads are made of them.

    Raises:
        BundleError: if it cannot be read, or its data has several hard links, which onnx refuses.
    """
    try:
        model = ir.load(path)
    except Exception as error:
        raise BundleError(f"{path}: not a readable ONNX model ({error})") from error
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or not Path(tensor.path).is_file():
                continue
            if Path(tensor.path).stat().st_nlink > 1:
                raise BundleError(f"{tensor.path}: has several hard links, copy it and its model")
            if Path(tensor.path).is_symlink():
                value.const_value = _as(ir.ExternalTensor, tensor, Path(tensor.path).resolve())
    return model


def drop_declared_weights(model: ir.Model) -> None:
    """Let weights be no inputs, where they are declared so, as all are in old files."""
    declared = [v for v in model.graph.inputs if v.name in model.graph.initializers]
    if any(v.const_value is not None and v.const_value.size >= MIN_ELEMENTS for v in declared):
        for value in declared:
            model.graph.inputs.remove(value)
        model.ir_version = max(model.ir_version, _INITIALIZERS_ALONE)


class Unkept(ir.ExternalTensor):
    """External data that is mapped anew for each read: its pages go with the array that reads them,
    and threads may read at once.
    """

    __slots__ = ()

    def numpy(self) -> np.ndarray[Any, Any]:
        return _as(ir.ExternalTensor, self).numpy()


def read_unkept(model: ir.Model) -> None:
    """Make every external initializer one that is read so."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _as(Unkept, value.const_value)


def _as(
    kind: type[ir.ExternalTensor], tensor: ir.ExternalTensor, path: Path | None = None
) -> ir.ExternalTensor:
    return kind(
        tensor.location if path is None else path.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=str(tensor.name),
        base_dir=tensor.base_dir if path is None else path.parent,
    )


def write_models(
    models: Mapping[str, ir.Model],
    directory: Path,
    *,
    data: str,
    same: Mapping[ir.Value, ir.Value],
    progress: Progress | None = None,
) -> list[Path]:
    """Write some models whose weights lie in one data file.

    Args:
        models: by file name; their large initializers become references into the data file.
        directory: must exist; files of these names are replaced.
        data: name of the data file.
        same: initializers that share the bytes of another, of the same model or another one.
        progress: told how many bytes are written.

    Returns:
        The paths of the model files, in the order of ``models``.
    """
    values = [
        value
        for model in models.values()
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    total = sum(v.const_value.nbytes for v in values if v not in same and v.const_value is not None)
    ranges: dict[ir.Value, tuple[int, int]] = {}
    copied: dict[tuple[str, int, int], tuple[int, int]] = {}
    with (directory / data).open("wb") as file:
        for value in values:
            tensor = value.const_value
            assert tensor is not None
            if value in same:
                continue
            where = byte_range(value)
            if where in copied:  # entries over the same bytes stay that
                ranges[value] = copied[where]
                continue
            align = _ALIGN_LARGE if tensor.nbytes >= _LARGE_BYTES else _ALIGN
            file.write(bytes(-file.tell() % align))
            start = file.tell()
            _write_tensor(file, tensor)
            ranges[value] = start, file.tell() - start
            if where is not None:
                copied[where] = ranges[value]
            if progress is not None:
                progress.advance(file.tell() >> 20, total >> 20)
    if not ranges:
        (directory / data).unlink()
    for value in values:
        original = value
        while original in same:
            original = same[original]
        _refer(value, directory / data, *ranges[original])
    for name, model in models.items():
        _read_constants(model)
        ir.save(model, directory / name)
    return [directory / name for name in models]


def _read_constants(model: ir.Model) -> None:
    """Take what stands in nodes out of the files that the model was read from."""
    for graph in (*model.graphs(), *model.functions.values()):
        for node in graph:
            for name, attribute in node.attributes.items():
                value = attribute.value
                if isinstance(value, ir.ExternalTensor):
                    array = np.array(value.numpy())
                    kept = ir.Tensor(array, dtype=value.dtype, shape=value.shape, name=value.name)
                    node.attributes[name] = ir.AttrTensor(name, kept)


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    """A tensor's bytes; those of another file are copied without being mapped."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
    elif tensor.dtype.bitwidth < 8:
        file.write(tensor.tobytes())  # packed
    else:
        file.write(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)


def _refer(value: ir.Value, path: Path, offset: int, length: int) -> None:
    """Point an initializer at a byte range of the data file."""
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.ExternalTensor(
        path.name,
        offset,
        length,
        tensor.dtype,
        name=str(value.name),
        shape=ir.Shape(tensor.shape.numpy()),
        base_dir=path.parent,
    )
