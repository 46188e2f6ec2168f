"""Find the quantized tensors of a GGUF file that are parameters of a module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.errors import SourceError
from edgetie.sources.quantized.gguf_blocks import split_blocks
from edgetie.sources.quantized.tensor import Array, QuantizedTensor

_FLOATS = ("F32", "F16", "BF16", "F64")


def read_quantized_tensors(
    path: Path, tensors: Any, module: Any, names: Mapping[str, str], processor: Any
) -> dict[str, QuantizedTensor]:
    """Read the quantized tensors of a file, with rows in the order of the module's parameters.

    Args:
        path: of the file, for messages.
        tensors: of :class:`gguf.GGUFReader`.
        module: the model, with weights that transformers dequantized.
        names: of parameters, by the names of tensors.
        processor: what transformers changes tensors with after dequantizing them.

    Returns:
        Tensors by the names of parameters. Dequantized, each equals its parameter.

    Raises:
        SourceError: if the values of a tensor are not a scale times an integer plus an offset, or
            the parameter is not the rows of the tensor.
    """
    parameters = dict(module.named_parameters())
    result = {}
    for tensor in tensors:
        type_name = tensor.tensor_type.name
        if type_name in _FLOATS or tensor.name not in names:
            continue
        name = names[tensor.name]
        quantized = split_blocks(type_name, tensor.data) if tensor.data.ndim == 2 else None
        if quantized is not None and name in parameters:
            quantized = _in_order(quantized, parameters[name].detach().numpy(), tensor, processor)
        if quantized is None:
            raise SourceError(
                f"{path}: {tensor.name} of type {type_name} cannot be kept as it is quantized; "
                "export it in floating point, and quantize that",
                advice={"dequantize": True},
            )
        result[name] = quantized
    return result


def _in_order(
    quantized: QuantizedTensor, parameter: Array, tensor: Any, processor: Any
) -> QuantizedTensor | None:
    """Select rows as transformers does; ``None`` if they are not the parameter's then.

    transformers arranges the rows of some architectures anew. Here it arranges their numbers.
    """
    rows, columns = quantized.values.shape
    numbers = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, columns))
    arranged = processor.process(weights=numbers, name=tensor.name).weights
    if arranged.shape != parameter.shape or len(arranged.shape) != 2:
        return None
    is_transposed = arranged.shape != (rows, columns) or (arranged[0] != arranged[0, 0]).any()
    order = (arranged[0] if is_transposed else arranged[:, 0]).astype(np.intp)
    if len(order) != rows:
        return None
    if not np.array_equal(order, np.arange(rows)):
        quantized = quantized.select_rows(order)
    floats = quantized.dequantize()
    is_equal = np.array_equal(floats.T if is_transposed else floats, parameter)
    return quantized.center() if is_equal else None
