"""Load ONNX models, and write several with one external data file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from edgetie.errors import BundleError, EdgetieError, summarize
from edgetie.graph.constants import MIN_ELEMENTS, OVERRIDABLE_IR_VERSION
from edgetie.graph.external_data import byte_range, check_external_data
from edgetie.progress import Progress

_INLINE_BYTES = 1024  # smaller tensors stay in the model file
_ALIGN = 64
_ALIGN_LARGE = 4096  # a page: a large tensor can be mapped and released separately
_LARGE_BYTES = 1 << 20


def load_model(path: Path) -> ir.Model:
    """Load an ONNX file without reading its external data.

    Symbolic links to data are followed, as ONNX Runtime does: download caches consist of them.

    Raises:
        BundleError: if it cannot be read or is damaged, its data is missing or cut short, or has
            several hard links, which onnx refuses.
    """
    proto = check_external_data(path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise BundleError(f"{path}: not a readable ONNX model ({summarize(error)})") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            data = Path(tensor.path)
            if data.stat().st_nlink > 1:
                raise BundleError(f"{data}: has several hard links, copy it and its model")
            if data.is_symlink():
                value.const_value = _external_tensor(
                    tensor, data.resolve(), tensor.offset, tensor.length
                )
    return model


def remove_weights_from_inputs(model: ir.Model) -> None:
    """Remove the initializers from the graph's inputs if a large one is declared as input.

    Old files declare all of them.
    """
    import onnx_ir.passes.common as common

    tensors = [value.const_value for value in model.graph.inputs if value.is_initializer()]
    if any(tensor is not None and tensor.size >= MIN_ELEMENTS for tensor in tensors):
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = max(model.ir_version, OVERRIDABLE_IR_VERSION)


class UncachedTensor(ir.ExternalTensor):
    """An external tensor that maps its file anew for each read.

    Its pages are released with the array that reads them, and several threads may read at once.
    """

    __slots__ = ()

    def numpy(self) -> np.ndarray[Any, Any]:
        return _external_tensor(self, Path(self.path), self.offset, self.length).numpy()


def read_uncached(model: ir.Model) -> None:
    """Turn every external initializer into an :class:`UncachedTensor`."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = _external_tensor(
                tensor, Path(tensor.path), tensor.offset, tensor.length, UncachedTensor
            )


def _external_tensor(
    tensor: ir.TensorProtocol,
    path: Path,
    offset: int | None,
    length: int | None,
    kind: type[ir.ExternalTensor] = ir.ExternalTensor,
) -> ir.ExternalTensor:
    """Return a tensor like ``tensor`` over a range of a file."""
    shape = ir.Shape(tensor.shape.numpy())
    location, directory = path.name, path.parent
    name = str(tensor.name)
    return kind(location, offset, length, tensor.dtype, shape=shape, name=name, base_dir=directory)


def write_models(
    models: Mapping[str, ir.Model],
    directory: Path,
    *,
    data: str,
    same: Mapping[ir.Value, ir.Value],
    progress: Progress | None = None,
) -> list[Path]:
    """Write several models with their weights in one data file, one tensor in memory at a time.

    ``onnx.save`` and ``onnx_ir.save`` would split byte ranges that two tensors share.

    Args:
        models: by file name. Their large initializers become references into the data file.
        directory: must exist. Files of these names are replaced.
        data: name of the data file.
        same: initializers that share the bytes of another one, of the same or another model.
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
    path = directory / data
    with path.open("wb") as file:
        ranges = _write_data(file, [value for value in values if value not in same], progress)
    if not ranges:
        path.unlink()
    for value in values:
        original = value
        while original in same:
            original = same[original]
        assert value.const_value is not None
        value.const_value = _external_tensor(value.const_value, path, *ranges[original])
        value.const_value.name = str(value.name)
    for name, model in models.items():
        _load_constants(model)
        _save(model, directory / name)
    return [directory / name for name in models]


def _save(model: ir.Model, path: Path) -> None:
    """Save a model; errors of tensors that are computed only now stay what they are."""
    try:
        ir.save(model, path)
    except ir.serde.SerdeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, EdgetieError):
                raise cause from error
            cause = cause.__cause__
        raise


def _write_data(
    file: BinaryIO, values: list[ir.Value], progress: Progress | None
) -> dict[ir.Value, tuple[int, int]]:
    """Write each tensor, those over the same bytes of a file once. Return offsets and lengths."""
    total = sum(value.const_value.nbytes for value in values if value.const_value is not None)
    ranges: dict[ir.Value, tuple[int, int]] = {}
    by_source: dict[tuple[str, int, int], tuple[int, int]] = {}
    for value in values:
        tensor, source = value.const_value, byte_range(value)
        assert tensor is not None
        if source in by_source:
            ranges[value] = by_source[source]
            continue
        align = _ALIGN_LARGE if tensor.nbytes >= _LARGE_BYTES else _ALIGN
        file.write(bytes(-file.tell() % align))
        start = file.tell()
        tensor.tofile(file)  # type: ignore[attr-defined]  # all of onnx-ir's tensors have it
        ranges[value] = start, file.tell() - start
        if source is not None:
            by_source[source] = ranges[value]
        if progress is not None:
            progress.advance(file.tell() >> 20, total >> 20)
    return ranges


def _load_constants(model: ir.Model) -> None:
    """Load the external tensors of node attributes, whose files may be replaced."""
    for graph in (*model.graphs(), *model.functions.values()):
        for node in graph:
            for name, attribute in node.attributes.items():
                tensor = attribute.value
                if isinstance(tensor, ir.ExternalTensor):
                    (loaded,) = ir.external_data.convert_tensors_from_external([tensor])
                    node.attributes[name] = ir.AttrTensor(name, loaded)
