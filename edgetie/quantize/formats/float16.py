"""Conversion to float16, for GPUs: the graph by ONNX Runtime's converter, weights when written."""

import numpy as np
import onnx_ir as ir

from edgetie.errors import QuantizeError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.quantize.weights.affine import Array

_SMALLEST, _LARGEST = 2.0**-24, 65504.0
_INFINITE = 1e30  # a larger value in a mask means infinity; the largest float16 is enough for it


def to_float16(model: ir.Model) -> ir.Model:
    """Return the model with inputs, outputs and weights in float16 instead of float32.

    Raises:
        QuantizeError: if a weight is too large for float16, naming it, or none is float32.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    graph = model.graph
    tensors = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and not value.is_graph_input()
        and (
            value.dtype == ir.DataType.FLOAT
            or value.const_value.size >= MIN_ELEMENTS
            or isinstance(value.const_value, ir.ExternalTensor)  # the converter drops its folder
        )
    }
    if all(tensor.dtype != ir.DataType.FLOAT for tensor in tensors.values()):
        raise QuantizeError("no float32 weight to convert to float16")
    order = list(graph.initializers)
    for name in tensors:  # the converter would copy them
        graph.inputs.append(graph.initializers.pop(name))
        graph.inputs[-1].const_value = None
    for index, node in enumerate(graph):
        node.name = node.name or f"unnamed.{index}"  # the converter finds nodes by name
    proto = convert_float_to_float16(
        ir.to_proto(model),
        disable_shape_infer=True,
        op_block_list=[op for op in DEFAULT_OP_BLOCK_LIST if op not in ("TopK", "Max", "Min")],
        node_block_list=[str(node.name) for node in _position_nodes(graph)],
    )
    converted: ir.Model = ir.from_proto(proto)
    inputs = {value.name: value for value in converted.graph.inputs}
    for name, tensor in tensors.items():
        value = inputs[name]
        converted.graph.inputs.remove(value)
        value.const_value = _cast(name, tensor) if value.dtype == ir.DataType.FLOAT16 else tensor
        converted.graph.register_initializer(value)
    for name in order:
        if name in converted.graph.initializers:
            converted.graph.register_initializer(converted.graph.initializers.pop(name))
    return converted


def _position_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Find the nodes that sines and cosines are computed from: of positions, which float16 cannot
    count beyond 2,048.
    """
    nodes: set[ir.Node] = set()
    queue = [node for node in graph if node.op_type in ("Cos", "Sin")]
    while queue:
        node = queue.pop()
        if node not in nodes:
            nodes.add(node)
            queue += node.predecessors()
    return [node for node in graph if node in nodes]


def _cast(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Cast a float32 tensor, a large one when it is read; others stay as they are."""
    if tensor.dtype != ir.DataType.FLOAT:
        return tensor

    def cast() -> ir.TensorProtocol:
        return ir.tensor(_cast_array(name, tensor.numpy()))

    shape, is_small = ir.Shape(tensor.shape.numpy()), tensor.size < MIN_ELEMENTS
    return cast() if is_small else ir.LazyTensor(cast, ir.DataType.FLOAT16, shape, name=name)


def _cast_array(name: str, array: Array) -> Array:
    """Cast an array to float16; the infinity of a mask becomes the largest value, and a tiny value
    of a small array, which keeps a divisor from zero, the smallest.
    """
    is_small = array.size < MIN_ELEMENTS
    infinite = ~(np.abs(array) < _INFINITE)  # NaN too
    finite = array[~infinite]
    is_weight = infinite.any() and not is_small and finite.any()
    if np.isnan(array).any() or is_weight or (np.abs(finite) > _LARGEST).any():
        raise QuantizeError(f"{name}: a value is too large for float16; choose another scheme")
    limited = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array)
    if is_small:
        tiny = (array != 0) & (np.abs(array) < _SMALLEST)
        limited = np.where(tiny, np.copysign(_SMALLEST, array), limited)
    return np.asarray(limited, np.float16)
