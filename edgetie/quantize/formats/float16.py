"""Activations of 16 bits, for GPUs: the graph by ONNX Runtime's converter, weights by reference.

The converter copies what it is given, so weights are left out of the graph it sees and cast when
they are written; a tied one stays one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.errors import QuantizeError
from edgetie.graph.constants import MIN_ELEMENTS

_SMALLEST, _LARGEST = 2.0**-24, 65504.0
_ENDLESS = 1e30
"""What is larger stands for infinity, in masks: the largest number will do."""
_POSITIONS = ("Cos", "Sin")
"""What is computed of positions: 16 bits do not count beyond 2,048."""


def to_float16(model: ir.Model) -> ir.Model:
    """The same model with inputs, outputs and weights of 16 bits instead of 32.

    Raises:
        QuantizeError: if a weight is too large for 16 bits, naming it, or there are none in fp32.
    """
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    graph = model.graph
    kept = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and (
            value.dtype == ir.DataType.FLOAT
            or value.const_value.size >= MIN_ELEMENTS
            or isinstance(value.const_value, ir.ExternalTensor)  # the converter drops its folder
        )
    }
    if all(tensor.dtype != ir.DataType.FLOAT for tensor in kept.values()):
        raise QuantizeError("no fp32 weight to make one of 16 bits of")
    order = list(graph.initializers)
    for name in kept:
        graph.inputs.append(graph.initializers.pop(name))
        graph.inputs[-1].const_value = None
    for index, node in enumerate(graph):
        node.name = node.name or f"unnamed.{index}"  # some are found by name
    blocked = [str(node.name) for node in _made_of_positions(graph)]
    proto = convert_float_to_float16(
        ir.to_proto(model),
        disable_shape_infer=True,
        op_block_list=[op for op in DEFAULT_OP_BLOCK_LIST if op not in ("TopK", "Max", "Min")],
        node_block_list=blocked,
    )
    made: ir.Model = ir.from_proto(proto)
    inputs = {value.name: value for value in made.graph.inputs}
    for name, tensor in kept.items():
        value = inputs[name]
        made.graph.inputs.remove(value)
        value.const_value = _cast(name, tensor) if value.dtype == ir.DataType.FLOAT16 else tensor
        made.graph.register_initializer(value)
    for name in order:  # codes in front of their scales, as the writer takes them
        if name in made.graph.initializers:
            made.graph.register_initializer(made.graph.initializers.pop(name))
    return made


def _made_of_positions(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that cosines and sines are computed by."""
    found: dict[int, ir.Node] = {}
    waiting = [node for node in graph if node.op_type in _POSITIONS]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            makers = [value.producer() for value in node.inputs if value is not None]
            waiting += [maker for maker in makers if maker is not None]
    return list(found.values())


def _cast(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != ir.DataType.FLOAT:
        return tensor

    def make() -> ir.TensorProtocol:
        array = tensor.numpy()
        endless = ~(np.abs(array) < _ENDLESS)  # NaN too
        real = array[~endless]
        mask = endless.any() and (tensor.size < MIN_ELEMENTS or not real.any())
        if np.isnan(array).any() or (endless.any() and not mask) or (np.abs(real) > _LARGEST).any():
            raise QuantizeError(f"{name}: a value is too large for 16 bits; choose another scheme")
        half = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array)
        if tensor.size < MIN_ELEMENTS:  # what keeps divisors from zero must not become zero
            tiny = (array != 0) & (np.abs(array) < _SMALLEST)
            half = np.where(tiny, np.copysign(_SMALLEST, array), half)
        return ir.tensor(half.astype(np.float16))

    if tensor.size < MIN_ELEMENTS:
        return make()
    return ir.LazyTensor(
        make, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name
    )
