"""Add the inputs of LoRA adapters: ``x A B`` is added to ``x W``."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle.names import LORA_A, LORA_B
from edgetie.errors import ExportError
from edgetie.graph.editing import replace
from edgetie.graph.matching import only_user, other_operand, weight
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass
from edgetie.ties.groups import JOINT, is_named


@dataclass(frozen=True)
class AdaptedProduct:
    """A MatMul to whose result an adapter may add.

    Attributes:
        down: name of the input ``A``, ``(in, rank)``.
        up: name of the input ``B``, ``(rank, out)``.
        parts: names of the torch parameters that its weight was packed from.
        in_channels: of the weight.
        dtype: of both inputs.
    """

    down: str
    up: str
    parts: tuple[str, ...]
    in_channels: int
    dtype: np.dtype[Any]


class AddAdapterInputs(GraphPass):
    """Adds ``x A B`` to the MatMuls over some weights.

    ``A`` and ``B`` are inputs with a default of rank 0, which adds nothing. Packed projections have
    one pair of them: the ``A`` of each side by side, and its ``B`` in its own rows and columns.

    Args:
        weights: names of the torch parameters that are weights of linear layers.
        changed: those of them that adapters change.

    Attributes:
        products: what the inputs belong to.
    """

    def __init__(self, weights: Collection[str], changed: Collection[str]) -> None:
        super().__init__()
        self._weights, self._changed = weights, changed
        self.products: list[AdaptedProduct] = []

    def rewrite(self, model: ir.Model) -> None:
        """Edit the graph.

        Raises:
            ExportError: if a weight is not read by one MatMul alone.
        """
        missing = dict.fromkeys(self._changed)
        for node in list(model.graph):
            matrix = node.inputs[1] if node.op_type == "MatMul" else None
            if matrix is None or weight(matrix) is None or len(matrix.uses()) != 1:
                continue
            names = [self._parameter(name) for name in str(matrix.name).split(JOINT)]
            parts = tuple(name for name in names if name is not None)
            if len(parts) == len(names) and not missing.keys().isdisjoint(parts):
                self._add(model.graph, node, parts)
                for name in parts:
                    missing.pop(name, None)
        if missing:
            raise ExportError(
                f"an adapter changes {next(iter(missing))}, which is not the weight of one linear "
                "layer in the graph; merge it into its base (peft's merge_and_unload) and export "
                "the result"
            )

    def _parameter(self, initializer: str) -> str | None:
        return next((name for name in self._weights if is_named(initializer, (name,))), None)

    def _add(self, graph: ir.Graph, matmul: ir.Node, parts: tuple[str, ...]) -> None:
        x, matrix = matmul.inputs
        assert x is not None
        assert matrix is not None
        assert matrix.const_value is not None
        in_channels, out_channels = matrix.const_value.shape.numpy()
        dtype, rank = matrix.const_value.dtype, f"rank_{len(self.products)}"
        down = _optional_input(graph, f"{matrix.name}{LORA_A}", (in_channels, rank), dtype)
        up = _optional_input(graph, f"{matrix.name}{LORA_B}", (rank, out_channels), dtype)
        nodes, result = Nodes(graph), _with_bias(matmul)
        total = nodes("Add", result, nodes("MatMul", nodes("MatMul", x, down), up))
        total.shape, total.type = result.shape, result.type
        last = result.producer()
        assert last is not None
        assert last.graph is not None
        last.graph.insert_after(last, nodes.nodes)
        replace(result, total)
        nodes.nodes[-1].replace_input_with(0, result)
        product = AdaptedProduct(
            str(down.name), str(up.name), parts, int(in_channels), dtype.numpy()
        )
        self.products.append(product)
        self.changed += 1


def _with_bias(matmul: ir.Node) -> ir.Value:
    """The result of a MatMul, after the bias if it has one."""
    output = matmul.outputs[0]
    add = only_user(output, "Add")
    vector = weight(other_operand(add, output)) if add is not None else None
    is_bias = vector is not None and len(vector.shape) == 1
    return add.outputs[0] if add is not None and is_bias else output


def _optional_input(
    graph: ir.Graph, name: str, shape: tuple[int | str, int | str], dtype: ir.DataType
) -> ir.Value:
    """Add an input whose default is empty: its symbolic size is 0."""
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    value = ir.Value(
        name=name,
        shape=ir.Shape(shape),
        type=ir.TensorType(dtype),
        const_value=ir.tensor(np.zeros(sizes, dtype.numpy()), name=name),
    )
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value
