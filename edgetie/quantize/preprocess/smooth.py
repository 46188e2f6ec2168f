"""Smoothing: outlying channels of activations moved into the weights before both are rounded.

Inside MatMulNBits activations become int8 by blocks too, and one channel much larger than its
neighbours costs them their precision. Dividing channel j by ``s_j`` and multiplying row j of the
weight by it changes nothing in exact arithmetic (SmoothQuant, Xiao et al. 2022; with the scales
from activations alone, as in AWQ, Lin et al. 2023). The division goes where it costs nothing: into
the norm, or the projection, in front. A tied table is scaled too and stays one matrix: what is
looked up in it is divided again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.graph.matching import only_user, producer, weight
from edgetie.graph.operators import operator
from edgetie.passes.base import GraphPass
from edgetie.quantize.preprocess.linear_inputs import (
    LinearInput,
    find_linear_inputs,
    insert_after,
    transform_weight,
    transformed_tensor,
)
from edgetie.quantize.weights.affine import Array

_NORMS = {
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
"""Norms whose first output is the normed value, and the inputs that scale it (weight, bias)."""


def smoothable(model: ir.Model) -> dict[str, LinearInput]:
    """The sites whose channels can be scaled for nothing: behind a norm, or a gate's product."""
    return {
        name: linear_input
        for name, linear_input in find_linear_inputs(model).items()
        if _norm(linear_input) is not None or _linear_half(linear_input) is not None
    }


class Smooth(GraphPass):
    """Divides activations and multiplies the weights that read them.

    Args:
        scales: what each activation is divided by, channel by channel, by its name
            (:func:`smoothing`).
    """

    name = "smooth"

    def __init__(self, scales: Mapping[str, Array]) -> None:
        super().__init__()
        self.scales = scales

    def rewrite(self, model: ir.Model) -> None:
        for name, linear_input in smoothable(model).items():
            scales = self.scales.get(name)
            if scales is None:
                continue
            norm, half = _norm(linear_input), _linear_half(linear_input)
            if norm is not None:
                for index in _NORMS[norm.op_type]:
                    if index < len(norm.inputs) and norm.inputs[index] is not None:
                        _rescale_input(model.graph, norm, index, 1 / scales)
            elif half is not None:
                for value, start in half:
                    _rescale_columns(value, start, 1 / scales)
            for product in linear_input.linear_ops:
                if product.transposed:
                    _rescale(product.weight, scales[:, None])
                else:
                    _rescale_table(model.graph, product.weight, scales)
            self.changed += 1


def smoothing(magnitudes: Array, strength: float) -> Array:
    """Divisors of an activation; their geometric mean is 1.

    Args:
        magnitudes: typical magnitude of each channel.
        strength: exponent on them: 0 changes nothing, 1 makes all channels alike.
    """
    floor = max(float(magnitudes.max()) * 1e-4, 1e-12)
    scales = np.maximum(magnitudes, floor) ** strength
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def _norm(linear_input: LinearInput) -> ir.Node | None:
    """The norm whose output the site is, or is a selection of rows of."""
    value = linear_input.value
    selection = producer(value, "GatherND")
    if selection is not None and selection.inputs[0] is not None:
        value = selection.inputs[0]
        if any(user not in (selection,) and operator(user) != "Shape" for user, _ in value.uses()):
            return None
    node = producer(value, *_NORMS)
    if node is None or node.outputs[0] is not value or value.is_graph_output():
        return None
    gains = [node.inputs[i] for i in _NORMS[operator(node)] if i < len(node.inputs)]
    return node if all(weight(gain) is not None for gain in gains if gain is not None) else None


def _linear_half(linear_input: LinearInput) -> list[tuple[ir.Value, int]] | None:
    """What makes the half of a gated product that enters linearly: its matrix and its bias.

    Each with the column it starts at: the product may be packed with others, and split.
    """
    gated = producer(linear_input.value, "Mul")
    if gated is None:
        return None
    for value in gated.inputs:
        if value is None or only_user(value) is None:
            continue
        split = producer(value, "Split")
        start = _start(split, value) if split is not None else 0
        made = split.inputs[0] if split is not None else value
        if made is None or start is None or only_user(made) is None:
            continue
        found = []
        add = producer(made, "Add")
        if add is not None:
            left, right = add.inputs[:2]
            bias, made = (left, right) if weight(left) is not None else (right, left)
            tensor = weight(bias)
            if tensor is None or bias is None or len(bias.uses()) != 1 or made is None:
                continue
            if len(tensor.shape) != 1 or only_user(made) is None:
                continue
            found.append((bias, start))
        product = producer(made, "MatMul")
        matrix = product.inputs[1] if product is not None else None
        if matrix is None or weight(matrix) is None or len(matrix.uses()) != 1:
            continue
        found.append((matrix, start))
        shapes = [v.const_value.shape.numpy() for v, _ in found]  # type: ignore[union-attr]
        if len(shapes[-1]) == 2 and all(
            shape[-1] >= start + linear_input.channels for shape in shapes
        ):
            return found
    return None


def _start(split: ir.Node, value: ir.Value) -> int | None:
    """The first column of one output of a Split along the last axis."""
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    rank = len(value.shape) if value.shape is not None else None
    sizes = split.inputs[1].const_value if len(split.inputs) > 1 and split.inputs[1] else None
    if sizes is None or axis not in (-1, rank - 1 if rank else -1):
        return None
    return int(sizes.numpy()[: list(split.outputs).index(value)].sum())


def _rescale(value: ir.Value | None, factors: Array) -> None:
    assert value is not None
    transform_weight(value, lambda array: array * factors)


def _rescale_columns(value: ir.Value, start: int, factors: Array) -> None:
    """Multiply some columns (the last axis) of a matrix, or entries of a bias."""
    assert value.const_value is not None
    all_columns = np.ones(value.const_value.shape.numpy()[-1], np.float32)
    all_columns[start : start + len(factors)] = factors
    _rescale(value, all_columns)


def _rescale_input(graph: ir.Graph, node: ir.Node, index: int, factors: Array) -> None:
    """Give ``node`` its constant input times ``factors``; other users keep it."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1:
        _rescale(value, factors)
        return
    copy = transformed_tensor(value, lambda array: array * factors)
    node.replace_input_with(index, initializer(graph, f"{value.name}.{node.name}.smooth", copy))


def _rescale_table(graph: ir.Graph, table: ir.Value, scales: Array) -> None:
    """Scale a table's columns and divide what is looked up in it."""
    for node, index in list(table.uses()):
        if operator(node) == "Gather" and index == 0:
            factors = initializer(graph, f"{table.name}.unsmooth", 1 / scales)
            insert_after(node, ir.node("Mul", [node.outputs[0], factors]))
    _rescale(table, scales)
