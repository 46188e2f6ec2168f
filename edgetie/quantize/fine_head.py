"""Logits from activations of twice the precision, for one more row in the head's product.

Inside MatMulNBits activations become int8 by blocks. What that rounds away in front of the head
goes into the logits as it is, a quarter of all the noise of activations. So the head multiplies two
rows: the activations as the kernel rounds them, and what is left, which has a scale of its own. The
table is read once for both.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgetie.passes._base import GraphPass, initializer, insert

PREFIX = "fine."
"""Names of the pass's own constants begin so."""


class FineHead(GraphPass):
    """Splits the input of each MatMulNBits that makes a graph output into a high and a low part.

    Needs: a 3-D input whose channels are whole blocks. Leaves: the same product, over two rows.
    """

    name = "fine_head"

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if node.op_type == "MatMulNBits" and node.outputs[0].is_graph_output():
                self._split(model.graph, node)

    def _split(self, graph: ir.Graph, node: ir.Node) -> None:
        x, result = node.inputs[0], node.outputs[0]
        columns, block = (node.attributes[name].as_int() for name in ("K", "block_size"))
        if x is None or x.shape is None or len(x.shape) != 3 or columns % block:
            self.skipped.append(f"{node.name}: its input is no row of whole blocks")
            return

        def integers(name: str, *numbers: int) -> ir.Value:
            return initializer(graph, PREFIX + name, np.array(numbers, np.int64))

        def number(name: str, value: float) -> ir.Value:
            return initializer(graph, PREFIX + name, np.array(value, np.float32))

        nodes: list[ir.Node] = []

        def add(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
            nodes.append(ir.node(op_type, list(inputs), attributes))
            return nodes[-1].outputs[0]

        blocks = add("Reshape", x, integers("blocks", 0, 0, columns // block, block))
        peak = add("ReduceMax", add("Abs", blocks), integers("last", -1), keepdims=1)
        # a block of zeros has no scale: something is needed to divide it by
        peak = add("Max", peak, number("tiny", 1e-30))
        scale = add("Mul", peak, number("step", 1 / 127))
        high = add("Mul", add("Round", add("Div", blocks, scale)), scale)
        both = add("Concat", high, add("Sub", blocks, high), axis=2)
        rows = add("Reshape", both, integers("rows", 0, 0, 2, columns))
        insert(node, *nodes)
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        node.replace_input_with(0, rows)
        ends = [ir.node("ReduceSum", [result, integers("pair", 2)], {"keepdims": 0})]
        if bias is not None:  # once, not for each row
            node.replace_input_with(5, None)
            ends.append(ir.node("Add", [ends[0].outputs[0], bias]))
        shape, kind = result.shape, result.type
        graph.insert_after(node, ends)
        ends[-1].outputs[0].shape, ends[-1].outputs[0].type = shape, kind
        _hand_over(graph, result, ends[-1].outputs[0])
        self.changed += 1


def _hand_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make ``new`` the graph output that ``old`` was; the node in between keeps reading ``old``."""
    name = old.name
    old.name, old.shape = f"{name}.rows", None
    new.name = name
    graph.outputs[list(graph.outputs).index(old)] = new
