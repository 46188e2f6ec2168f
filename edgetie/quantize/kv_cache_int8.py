"""The KV cache in 8 bits: GroupQueryAttention writes codes and reads them.

Keys and values have a scale for each channel of each head, fixed beforehand from what a calibration
text shows: keys have channels that are always large (KIVI, Liu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.graph.editing import initializer
from edgetie.passes.base import GraphPass
from edgetie.quantize.calibration.layerwise_run import Input, record
from edgetie.quantize.weights.affine import Array

_MARGIN = 1.2  # other texts have larger values
_KEY, _VALUE = 3, 4  # inputs of the operator, and
_SCALES = 12  # the first of its scales
_PRESENT = (1, 2)  # its outputs


def kv_cache_scales(bundle: Bundle, model: ir.Model, path: Path, given: Input) -> dict[str, Array]:
    """Scales ``(1, kv_heads, 1, head_size)`` of keys and values, by the names of the outputs.

    Args:
        bundle: what the model is part of.
        model: the model.
        path: the file it lies in, with a cache in floating point.
        given: what to run it on.

    Raises:
        QuantizeError: if the model has no GroupQueryAttention with a cache, or cannot be run.
    """
    names = [str(node.outputs[index].name) for node in _attention(model) for index in _PRESENT]
    if not names:
        raise QuantizeError(
            f"{path.name}: no GroupQueryAttention, the operator that takes a cache of 8 bits; "
            "leave the cache in floating point"
        )
    found: dict[str, Array] = {}
    for name, values, _ in record(bundle, path, names, given):
        peaks = np.abs(values).max(axis=(0, 2))
        found[name] = np.maximum(found.get(name, 0), peaks)
    return {
        name: np.maximum(peaks * _MARGIN / 127, 1e-8).astype(np.float32)[None, :, None, :]
        for name, peaks in found.items()
    }


class QuantizeKvCache(GraphPass):
    """Makes GroupQueryAttention's cache one of int8.

    Args:
        scales: as :func:`kv_cache_scales` gives them.
    """

    name = "quantize_cache"

    def __init__(self, scales: Mapping[str, Array]) -> None:
        super().__init__()
        self.scales = scales

    def rewrite(self, model: ir.Model) -> None:
        for node in _attention(model):
            made = [node.outputs[index] for index in _PRESENT]
            if any(value.name not in self.scales for value in made):
                continue
            node.resize_inputs(max(_SCALES + 2, len(node.inputs)))
            for offset, value in enumerate(made):
                scale = initializer(
                    model.graph, f"{value.name}.scale", self.scales[str(value.name)]
                )
                node.replace_input_with(_SCALES + offset, scale)
            for kind in ("k", "v"):
                node.attributes[f"{kind}_quant_type"] = ir.AttrString(
                    f"{kind}_quant_type", "PER_CHANNEL"
                )
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            for cache in (node.inputs[_KEY], node.inputs[_VALUE], *made):
                assert cache is not None
                cache.type = ir.TensorType(ir.DataType.INT8)
            self.changed += 1


def _attention(model: ir.Model) -> list[ir.Node]:
    """The nodes whose cache is the graph's input and output."""
    return [
        node
        for node in model.graph
        if node.op_type == "GroupQueryAttention"
        and all(v is not None and v.is_graph_input() for v in node.inputs[_KEY : _VALUE + 1])
        and all(node.outputs[index].is_graph_output() for index in _PRESENT)
    ]
