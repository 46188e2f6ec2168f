"""Int8 KV cache of GroupQueryAttention, with a fixed scale for each channel of each head.

Keys have channels that are always large (KIVI, Liu et al. 2024).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.graph.editing import initializer
from edgetie.passes.base import GraphPass
from edgetie.quantize.calibration.layerwise_run import CalibrationInput, run_layerwise
from edgetie.quantize.weights.affine import Array

_MARGIN = 1.2  # other texts have larger values
_SMALLEST_SCALE = 1e-8
# inputs and outputs of GroupQueryAttention, keys before values
_PAST, _SCALES, _PRESENT = (3, 4), (12, 13), (1, 2)


def kv_cache_scales(
    bundle: Bundle, model: ir.Model, path: Path, inputs: CalibrationInput
) -> dict[str, Array]:
    """Measure scales ``(1, kv_heads, 1, head_size)`` of keys and values, by the outputs' names.

    Raises:
        QuantizeError: if the model has no GroupQueryAttention with a cache, or cannot be run.
    """
    names = [str(node.outputs[i].name) for node in _attention_nodes(model) for i in _PRESENT]
    if not names:
        raise QuantizeError(
            f"{path.name}: no GroupQueryAttention, the only operator with an int8 KV cache; "
            "leave the cache in floating point"
        )
    largest: dict[str, Array] = {}
    for activation in run_layerwise(bundle, path, names, inputs):
        peaks = np.abs(activation.array).max(axis=(0, 2))
        largest[activation.name] = np.maximum(largest.get(activation.name, 0), peaks)
    return {
        name: np.maximum(each * _MARGIN / 127, _SMALLEST_SCALE).astype(np.float32)[None, :, None]
        for name, each in largest.items()
    }


class QuantizeKvCache(GraphPass):
    """Quantizes the cache of GroupQueryAttention to int8 by the scales of keys and values."""

    name = "quantize_cache"

    def __init__(self, scales: Mapping[str, Array]) -> None:
        super().__init__()
        self.scales = scales

    def rewrite(self, model: ir.Model) -> None:
        for node in _attention_nodes(model):
            present = [node.outputs[index] for index in _PRESENT]
            if any(value.name not in self.scales for value in present):
                continue
            node.resize_inputs(max(_SCALES[-1] + 1, len(node.inputs)))
            for index, value in zip(_SCALES, present, strict=True):
                scales = self.scales[str(value.name)]
                node.replace_input_with(
                    index, initializer(model.graph, f"{value.name}.scale", scales)
                )
            for name in ("k_quant_type", "v_quant_type"):
                node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            for cache in (*(node.inputs[index] for index in _PAST), *present):
                assert cache is not None
                cache.type = ir.TensorType(ir.DataType.INT8)
            self.changed += 1


def _attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Find the GroupQueryAttention nodes whose cache is an input and output of the graph."""
    return [
        node
        for node in model.graph
        if node.op_type == "GroupQueryAttention"
        and all(v is not None and v.is_graph_input() for v in (node.inputs[i] for i in _PAST))
        and all(node.outputs[index].is_graph_output() for index in _PRESENT)
    ]
