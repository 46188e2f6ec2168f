"""Quantize a base with LoRA adapters: their matrices stay floats and follow its activations.

What smoothing and rotating does to the channels that a weight reads, or computes, is done to the
matrices ``A``, or ``B``, of every adapter too. The base becomes what it is without adapters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import LORA_A, LORA_B
from edgetie.graph.matching import producer
from edgetie.runtime.adapters import AdapterFile, adapter_path, is_adapter_input, write_adapter

Array = np.ndarray[Any, Any]

_MATRICES = "edgetie.adapters"  # metadata of an input: its matrix in each adapter
_DEFAULT = "edgetie.default"  # metadata of an input: its default


def read_matrices(bundle: Bundle, model: ir.Model) -> None:
    """Read adapters into the metadata of the inputs that they fill.

    The inputs have no default until :func:`restore_defaults`: it is no weight of the model.

    Raises:
        BundleError: if an adapter's file cannot be read.
    """
    files = {
        name: AdapterFile(adapter_path(bundle.directory, name)).tensors
        for name in bundle.manifest.adapters
    }
    for value in model.graph.inputs if files else ():
        name = str(value.name)
        if is_adapter_input(name):
            value.meta[_MATRICES] = {n: t[name] for n, t in files.items() if name in t}
            value.meta[_DEFAULT] = value.const_value
            model.graph.initializers.pop(name)
            value.const_value = None


def restore_defaults(model: ir.Model) -> None:
    """Make the inputs of adapters optional again."""
    for value in model.graph.inputs:
        if _DEFAULT in value.meta:
            value.const_value = value.meta.pop(_DEFAULT)
            model.graph.register_initializer(value)


def matrices(value: ir.Value) -> dict[str, Array] | None:
    """The matrix of each adapter that an input has, by the adapter's name; of others ``None``."""
    result: dict[str, Array] | None = value.meta.get(_MATRICES)
    return result


def reads_for_adapter(node: ir.Node) -> bool:
    """Whether a node is the MatMul ``x A``."""
    return node.op_type == "MatMul" and str(node.inputs[1] and node.inputs[1].name).endswith(LORA_A)


def inputs_down(x: ir.Value) -> list[ir.Value]:
    """The inputs ``A`` that an activation is multiplied by."""
    downs = [node.inputs[1] for node, _ in x.uses() if reads_for_adapter(node)]
    return [down for down in downs if down is not None]


def input_up(update: ir.Value | None) -> ir.Value | None:
    """The input ``B`` if a value is ``x A B``."""
    node = producer(update, "MatMul")
    up = node.inputs[1] if node is not None else None
    return up if up is not None and str(up.name).endswith(LORA_B) else None


def write_matrices(
    models: Mapping[str, ir.Model], quantized: Mapping[str, ir.Model], bundle: Bundle, folder: Path
) -> None:
    """Write the adapters' files in ``folder``.

    Args:
        models: after preprocessing; their inputs have the matrices.
        quantized: the models to run; their inputs have the dtypes.
        bundle: the source.
        folder: of the quantized models.
    """
    values = [value for model in models.values() for value in model.graph.inputs]
    inputs = [value for model in quantized.values() for value in model.graph.inputs]
    dtypes = {value.name: (value.dtype or ir.DataType.FLOAT).numpy() for value in inputs}
    for name in bundle.manifest.adapters:
        arrays = {
            str(value.name): each[name].astype(dtypes[value.name])
            for value in values
            if (each := matrices(value)) is not None and name in each
        }
        write_adapter(adapter_path(folder, name), arrays)
