"""Drop rows of the tensors of a model that have an entry for every token."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.bundle import Bundle
from edgetie.errors import PruneError
from edgetie.graph.editing import Array, initializer, transformed
from edgetie.graph.external_data import byte_range
from edgetie.graph.matching import constant, last_dimension
from edgetie.graph.model_files import load_model, read_uncached, remove_weights_from_inputs
from edgetie.prune.vocabulary_axes import LOGITS, VocabularyAxes


class VocabularyModels:
    """The models of a bundle, and their tensors with an entry for every token.

    Attributes:
        models: by file name.
        rows: number of tokens of the largest tensor.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Read the models and find the tensors.

        Raises:
            BundleError: if a file cannot be read.
            PruneError: if a node that works on tokens is not understood.
        """
        self.models: dict[str, ir.Model] = {}
        self._axes: dict[str, VocabularyAxes] = {}
        for path in bundle.model_paths:
            model = self.models[path.name] = load_model(path)
            remove_weights_from_inputs(model)
            read_uncached(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            self._axes[path.name] = VocabularyAxes(model, path.name)
        tensors = self._tensors()
        if not tensors:
            raise PruneError(f"{bundle.directory}: no table has a row for every token")
        self.rows = max(int(tensor.shape.numpy()[axis]) for tensor, axis in tensors)

    @property
    def table_bytes(self) -> int:
        """The bytes of these tensors in files, shared ones counted once."""
        return sum(tensor.nbytes for tensor, _ in self._tensors())

    def _tensors(self) -> list[tuple[ir.TensorProtocol, int]]:
        """List tensors with an entry for every token, and that axis, shared ones once."""
        tensors = {
            byte_range(value) or id(value): (value.const_value, axis)
            for axes in self._axes.values()
            for value, axis in axes.initializers
        }
        return [(tensor, axis) for tensor, axis in tensors.values() if tensor is not None]

    @property
    def columns(self) -> int:
        """The last dimension of the logits."""
        logits = [
            value
            for model in self.models.values()
            for value in model.graph.outputs
            if value.name == LOGITS
        ]
        return (last_dimension(logits[0]) if logits else None) or 0

    def constant_tokens(self) -> set[int]:
        """List the tokens that are constants of the graphs."""
        arrays = (
            constant(node.inputs[index])
            for axes in self._axes.values()
            for node, index in axes.token_constants
        )
        tokens = {int(token) for array in arrays if array is not None for token in array.flat}
        return {token for token in tokens if 0 <= token < self.rows}

    def prune(self, kept: Sequence[int]) -> tuple[dict[ir.Value, ir.Value], int]:
        """Let the models have the tokens ``kept`` alone, numbered in this order.

        Returns:
            Initializers that share the bytes of another one, and the number of values dropped.

        Raises:
            PruneError: naming a tensor that has too few rows for the order.
        """
        same: dict[ir.Value, ir.Value] = {}
        owners: dict[object, ir.Value] = {}
        dropped = 0
        for file, axes in self._axes.items():
            for value, axis in axes.initializers:
                owner = owners.setdefault((byte_range(value) or id(value), axis), value)
                if owner is not value:
                    same[value] = owner
                dropped += _take_rows(value, axis, kept, file) * (owner is value)
            for value, axis in axes.axes.items():
                _resize(value, axis, kept)
            graph, numbers = self.models[file].graph, {old: new for new, old in enumerate(kept)}
            for node, index in axes.token_constants:
                _renumber_constant(graph, node, index, numbers)
            for node, index in axes.bounds:
                _renumber_bounds(graph, node, index, kept, file)
            for node, index in axes.size_constants:
                _resize_constant(graph, node, index, kept)
        return same, dropped


def _take_rows(value: ir.Value, axis: int, kept: Sequence[int], file: str) -> int:
    """Choose the entries of an initializer; return how many values are dropped."""
    tensor = value.const_value
    assert tensor is not None
    shape = list(tensor.shape.numpy())
    rows = _first_below(kept, shape[axis], f"{file}: {value.name} has {shape[axis]:,} rows")
    shape[axis] = len(rows)
    function = functools.partial(np.take, indices=rows, axis=axis)
    value.const_value = transformed(tensor, function, shape)
    return tensor.size - value.const_value.size


def _resize(value: ir.Value, axis: int, kept: Sequence[int]) -> None:
    """State the new size in the shape of a value."""
    if value.shape is None or not isinstance(size := value.shape[axis], int):
        return
    sizes = list(value.shape)
    sizes[axis] = len(_below(kept, size))
    value.shape = ir.Shape(sizes)


def _first_below(kept: Sequence[int], size: int, what: str) -> list[int]:
    """List the kept tokens below a number, which must be the first ones."""
    rows = _below(kept, size)
    if rows != list(kept[: len(rows)]):
        raise PruneError(
            f"{what}, fewer than other tables, and not for the first of the tokens; not supported"
        )
    return rows


def _below(kept: Sequence[int], size: int) -> list[int]:
    return [token for token in kept if token < size]


def _renumber_constant(
    graph: ir.Graph, node: ir.Node, index: int, numbers: Mapping[int, int]
) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    new = np.vectorize(lambda token: numbers.get(int(token), token))(array)
    _replace_constant(graph, node, index, new.astype(array.dtype))


def _renumber_bounds(
    graph: ir.Graph, node: ir.Node, index: int, kept: Sequence[int], file: str
) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    what = f"{file}: node {node.name} divides the tokens at {array}"
    new = [len(_first_below(kept, int(bound), what)) for bound in array.flat]
    _replace_constant(graph, node, index, np.array(new, array.dtype).reshape(array.shape))


def _resize_constant(graph: ir.Graph, node: ir.Node, index: int, kept: Sequence[int]) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    new = array.copy()
    new[-1] = len(_below(kept, int(array[-1])))
    _replace_constant(graph, node, index, new)


def _replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Let one use of a constant read another one. Other uses may mean something else."""
    old = node.inputs[index]
    assert old is not None
    node.replace_input_with(index, initializer(graph, f"{old.name}.pruned", array))
    if not old.uses() and isinstance(old.graph, ir.Graph) and old.is_initializer():
        old.graph.initializers.pop(str(old.name))
