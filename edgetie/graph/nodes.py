"""Make nodes to insert into a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from edgetie.graph.editing import detach, initializer, insert, take_over

_AXES_AS_INPUT = 13  # the first opset in which Unsqueeze, Squeeze, ReduceSum have an input for axes
_LARGEST_SHAPE = 64  # elements of a constant that may be a shape, axes or the like
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_NOT_INFERRED = (
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    ValueError,  # inputs of unknown type
)


class Nodes(ir.tape.Tape):
    """Nodes to insert into a graph, whose main graph gets the initializers.

    A call adds a node. Its output has the type and the shape that ONNX infers.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.main_graph = graph

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        return self.op(op_type, inputs, attributes, domain=domain)

    def op(self, *arguments: Any, **options: Any) -> ir.Value:
        """Add a node, see :meth:`onnx_ir.tape.Tape.op`."""
        output = super().op(*arguments, **options)
        infer_outputs(self.nodes[-1], self.main_graph.opset_imports)
        return output

    def op_multi_out(self, *arguments: Any, **options: Any) -> Sequence[ir.Value]:
        """Add a node of several outputs, see :meth:`onnx_ir.tape.Tape.op_multi_out`."""
        outputs = super().op_multi_out(*arguments, **options)
        infer_outputs(self.nodes[-1], self.main_graph.opset_imports)
        return outputs

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """Return an initializer, registered once by its name."""
        return initializer(self.main_graph, name, np.array(value, dtype))

    def tensor(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer of a tensor, registered once by its name."""
        return initializer(self.main_graph, name, tensor)

    def integers(self, name: str, values: npt.ArrayLike) -> ir.Value:
        """Return an int64 initializer, for shapes and axes."""
        return self.constant(name, values, np.int64)

    def along(self, op_type: str, x: ir.Value, axis: int, **attributes: Any) -> ir.Value:
        """Add an Unsqueeze, a Squeeze or a ReduceSum of an axis, as the graph's opset has it."""
        if self.main_graph.opset_imports.get("", 1) < _AXES_AS_INPUT:
            return self(op_type, x, axes=[axis], **attributes)
        return self(op_type, x, self.integers(f"axis.{axis}", [axis]), **attributes)

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Add a Cast, unless ``x`` has this type."""
        return x if x.dtype == dtype else self("Cast", x, to=dtype)

    def transpose(self, x: ir.Value, axes: int = 2) -> ir.Value:
        """Swap the last two of an activation's or a weight's axes."""
        return self("Transpose", x, perm=[*range(axes - 2), axes - 1, axes - 2])

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Return a scalar initializer of a type."""
        return self.constant(f"number.{dtype.name}.{value}", value, dtype.numpy())

    def insert_instead_of(self, node: ir.Node, *results: ir.Value) -> None:
        """Insert the nodes before another one, whose users then read their results."""
        insert(node, *self.nodes)
        for old, new in zip(node.outputs, results, strict=False):
            if old.uses() or old.is_graph_output():
                take_over(old, new)

    def insert_for_use(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Insert the nodes before another one, which then reads their result ``value``."""
        insert(node, *self.nodes)
        node.replace_input_with(index, value)

    def discard(self) -> None:
        """Detach the nodes, which are not inserted, from the values that they read."""
        for node in self.nodes:
            detach(node)

    def make_names_unique(self, prefix: str) -> None:
        """Name the values of a subgraph unlike those of all other graphs."""
        for index, node in enumerate(self.nodes):
            for output in node.outputs:
                output.name = f"{prefix}.{index}.{output.index()}"


def infer_outputs(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """Set the types and shapes of a node's outputs, as far as ONNX infers them from its inputs.

    Args:
        node: one that ONNX does not define, or with subgraphs, is left as it is.
        opsets: versions by domain.
    """
    if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
        return
    names = [f"x{index}" if each is not None else "" for index, each in enumerate(node.inputs)]
    inputs = {name: each for name, each in zip(names, node.inputs, strict=True) if each is not None}
    results = [f"y{index}" for index in range(len(node.outputs))]
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        proto = onnx.helper.make_node(node.op_type, names, results, domain=node.domain)
        proto.attribute.extend(map(ir.serde.serialize_attribute, node.attributes.values()))
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {name: _type_of(value) for name, value in inputs.items()},
            {
                name: ir.serde.serialize_tensor(tensor)
                for name, value in inputs.items()
                if (tensor := value.const_value) is not None and _may_be_shape(tensor)
            },
            opset_imports=[onnx.helper.make_opsetid(*item) for item in opsets.items()],
        )
    except _NOT_INFERRED:
        return
    for name, output in zip(results, node.outputs, strict=True):
        if (result := inferred.get(name)) is not None:
            output.type = ir.serde.deserialize_type_proto_for_type(result)
            output.shape = ir.serde.deserialize_type_proto_for_shape(result)


def _may_be_shape(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant may be a shape, axes or the like. Lazy ones are not computed for that."""
    is_lazy = isinstance(tensor, ir.LazyTensor)
    return not is_lazy and tensor.dtype == ir.DataType.INT64 and tensor.size <= _LARGEST_SHAPE


def _type_of(value: ir.Value) -> onnx.TypeProto:
    result = onnx.TypeProto()
    if value.type is not None:
        ir.serde.serialize_type_into(result, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(result, value.shape)
    return result
