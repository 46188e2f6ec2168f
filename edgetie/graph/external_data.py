"""Find the external data files of an ONNX model, without reading any weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetie.errors import BundleError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def external_data_files(model_path: Path) -> list[Path]:
    """Return the external data files that an ONNX model refers to."""
    from edgetie.graph.structure import read_proto  # imports onnx

    entries = _external_entries(model_path, read_proto(model_path))
    names = {location for _, location, _, _ in entries}
    return sorted(model_path.parent / name for name in names)


def check_external_data(model_path: Path) -> onnx.ModelProto:
    """Check that every external tensor lies inside an existing file.

    Returns:
        The model, without its external data.

    Raises:
        BundleError: naming the file, and the first tensor that does not fit.
    """
    from edgetie.graph.structure import read_proto  # imports onnx

    sizes: dict[str, int] = {}
    model = read_proto(model_path)
    for tensor, location, offset, length in _external_entries(model_path, model):
        path = model_path.parent / location
        if location not in sizes:
            if not path.is_file():
                raise BundleError(
                    f"{path}: external data of {model_path.name} is missing; "
                    "copy it next to the model"
                )
            sizes[location] = path.stat().st_size
        if offset + length > sizes[location]:
            raise BundleError(
                f"{path}: {sizes[location]:,} bytes, but tensor {tensor} ends at "
                f"{offset + length:,} (truncated?); export or copy it again"
            )
    return model


def _external_entries(
    model_path: Path, proto: onnx.ModelProto
) -> Iterator[tuple[str, str, int, int]]:
    """Yield ``(tensor, file, offset, length)`` of every external tensor."""
    import onnx

    from edgetie.graph.structure import tensor_bytes

    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        location = info.get("location", "")
        try:
            size = tensor_bytes(tensor)
            offset, length = int(info.get("offset", 0)), int(info.get("length", size))
        except ValueError:
            offset = length = -1
        outside = Path(location).is_absolute() or ".." in Path(location).parts
        if not location or outside or offset < 0 or length < 0:
            raise BundleError(
                f"{model_path}: external data of {tensor.name} is not a range of a file "
                f"next to the model ({info}); export it again"
            )
        if length != size:
            raise BundleError(
                f"{model_path}: the external data of {tensor.name} has {length:,} bytes, but its "
                f"shape {list(tensor.dims)} takes {size:,}; export it again"
            )
        yield tensor.name, location, offset, length


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and constants of a model, its subgraphs and functions."""
    bodies: list[Any] = [model.graph, *model.functions]
    for body in bodies:  # which grows
        yield from getattr(body, "initializer", ())
        for node in body.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                bodies += (attribute.g, *attribute.graphs)


def byte_range(value: ir.Value) -> tuple[str, int, int] | None:
    """Return ``(file, offset, length)`` of an initializer in external data."""
    import onnx_ir as ir

    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.offset is None or not tensor.length:
        return None
    return str(Path(tensor.path)), tensor.offset, tensor.length
