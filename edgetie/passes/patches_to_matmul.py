"""Write a convolution of patches that do not overlap as a MatMul."""

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgetie.graph.editing import initializer
from edgetie.graph.matching import attribute_ints, operator, weight
from edgetie.graph.nodes import Nodes
from edgetie.passes.base import GraphPass


class PatchesToMatMul(GraphPass):
    """Rewrites a Conv whose stride is its kernel, as at the start of image encoders.

    Its weight can be quantized then. The image's size must be known, and be whole patches.
    """

    def __init__(self, shared: Collection[str] = ()) -> None:
        """Set up the pass.

        Args:
            shared: names of weights that another graph reads too, which stay as they are.
        """
        super().__init__()
        self._shared = shared

    def rewrite(self, model: ir.Model) -> None:
        for node in list(model.graph):
            if operator(node) != "Conv":
                continue
            patch = _patch(node)
            kernel = node.inputs[1]
            if patch and kernel is not None and kernel.name not in self._shared:
                _rewrite(model.graph, node, kernel, patch)
                self.changed += 1


def _patch(node: ir.Node) -> tuple[int, ...]:
    """Height and width of the patches, or their other axes; empty if there are none."""
    x, kernel = node.inputs[:2]
    tensor = weight(kernel)
    if x is None or x.shape is None or kernel is None or tensor is None:
        return ()
    patch = tuple(tensor.shape.numpy()[2:])
    sizes = list(x.shape)[2:]
    is_whole = len(sizes) == len(patch) and all(
        isinstance(size, int) and size % side == 0 for size, side in zip(sizes, patch, strict=False)
    )
    is_plain = (
        node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and node.attributes.get_int("group", 1) == 1
        and not any(attribute_ints(node, "pads") or [])
        and set(attribute_ints(node, "dilations") or [1]) == {1}
    )
    has_patches = attribute_ints(node, "strides") == list(patch) and math.prod(patch) > 1
    return patch if has_patches and is_whole and is_plain and len(kernel.uses()) == 1 else ()


def _rewrite(graph: ir.Graph, node: ir.Node, kernel: ir.Value, patch: tuple[int, ...]) -> None:
    nodes = Nodes(graph)
    x, tensor = node.inputs[0], kernel.const_value
    assert x is not None
    assert x.shape is not None
    assert tensor is not None
    channels, count = int(tensor.shape.numpy()[1]), len(patch)
    sizes = [size for size in list(x.shape)[2:] if isinstance(size, int)]
    grid = [size // side for size, side in zip(sizes, patch, strict=True)]
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    label = f"{node.name}.patches"
    # (batch, channels, rows, height, columns, width) to (batch, rows, columns, patch)
    split_x = nodes("Reshape", x, nodes.integers(f"{label}.split", [0, channels, *split]))
    places, inside = range(2, 2 + 2 * count, 2), range(3, 3 + 2 * count, 2)
    moved = nodes("Transpose", split_x, perm=[0, *places, 1, *inside])
    rows = nodes("Reshape", moved, nodes.integers(f"{label}.rows", [0, *grid, -1]))
    matrix = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().reshape(len(tensor.numpy()), -1).T)),
        dtype=tensor.dtype,
        shape=ir.Shape([channels * math.prod(patch), int(tensor.shape.numpy()[0])]),
        name=f"{kernel.name}.matrix",
    )
    result = nodes("MatMul", rows, initializer(graph, f"{kernel.name}.matrix", matrix))
    nodes.nodes[-1].name = node.name
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = nodes("Add", result, node.inputs[2])
    output = nodes("Transpose", result, perm=[0, count + 1, *range(1, count + 1)])
    nodes.insert_instead_of(node, output)
