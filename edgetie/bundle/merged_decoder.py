"""Write ``decoder_model_merged.onnx``, the decoder that optimum and transformers.js read."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgetie.bundle.names import DECODER, ENCODER, ENCODER_MASK
from edgetie.graph.editing import initializer
from edgetie.graph.tensors import PAST, PRESENT

MERGED = "decoder_model_merged.onnx"

LAST_HIDDEN = "last_hidden_state"
"""Output of an encoder."""
HIDDEN = "encoder_hidden_states"
"""Input of a decoder that computes cross-attention's keys and values: that output."""
USE_CACHE = "use_cache_branch"
"""Input of a merged decoder: whether it reads the cache."""
_MASKS = ("attention_mask", "input_ids")
_SUFFIX = ".merged"
"""Appended to names of one graph that may be in use in the other."""


def write_merged(directory: Path) -> bool:
    """Write the merged decoder next to ``encoder_model.onnx`` and ``decoder_model.onnx``.

    Unless ``use_cache_branch`` is set, it computes the keys and values of cross-attention from
    ``encoder_hidden_states``. It reads the weights of the two graphs, so the file stores none.

    Returns:
        Whether it was written. It cannot be if the keys and values of cross-attention depend on
        more than the encoder's last hidden state, or if the decoder has no cache.
    """
    encoder, decoder = (ir.load(directory / name) for name in (ENCODER, DECODER))
    graph, imports, others = decoder.graph, decoder.opset_imports, encoder.opset_imports
    encoded = {str(value.name): value for value in encoder.graph.outputs}
    cross = [value for name, value in encoded.items() if name.startswith(f"{PRESENT}.")]
    projections = _extract_projections(encoder.graph, cross)
    if projections is None or imports | others != others | imports:
        return False
    imports.update(others)
    hidden = _like(encoded[LAST_HIDDEN], HIDDEN)
    use_cache = ir.Value(name=USE_CACHE, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    graph.inputs.extend([hidden, use_cache])
    used = ir.convenience.create_value_mapping(graph)
    mask = {name: used[ENCODER_MASK] for name in _MASKS if ENCODER_MASK in used}
    read_from(projections, graph, {LAST_HIDDEN: hidden} | mask)
    inputs = {str(value.name): value for value in graph.inputs}
    pasts = [inputs[str(value.name).replace(PRESENT, PAST, 1)] for value in cross]
    presents = [_like(value, str(value.name)) for value in cross]
    ir.convenience.replace_all_uses_with(pasts, presents)
    copies = [
        ir.node("Identity", [past], outputs=[_like(value, f"{value.name}{_SUFFIX}")])
        for past, value in zip(pasts, cross, strict=True)
    ]
    cached = ir.Graph([], [node.outputs[0] for node in copies], nodes=copies, name="cached")
    branches = {"then_branch": cached, "else_branch": projections}
    graph.insert_before(graph[0], ir.node("If", [use_cache], branches, outputs=presents))
    graph.outputs.extend(presents)
    for values in (graph.inputs, graph.outputs):
        values[:] = sorted(values, key=_by_layer)
    ir.save(decoder, directory / MERGED)
    return True


def _like(value: ir.Value, name: str) -> ir.Value:
    """Make a value of the same type and shape."""
    return ir.Value(name=name, type=value.type, shape=value.shape)


def _extract_projections(graph: ir.Graph, cross: list[ir.Value]) -> ir.Graph | None:
    """Extract what computes keys and values from the last hidden state and the mask.

    Returns:
        The graph, or ``None`` if they depend on anything else or its nodes contain subgraphs.
    """
    inputs = {str(value.name): value for value in graph.inputs}
    has_mask = "attention_mask" in inputs  # the input ids have the same shape
    masks = [inputs[name] for name in _MASKS if has_mask and name in inputs]
    try:
        part = ir.convenience.extract(graph, [LAST_HIDDEN, *masks], cross)
    except ValueError:
        return None
    ids = next((value for value in part.inputs if value.name == "input_ids"), None)
    reads_ids = ids is not None and any(user.op_type != "Shape" for user, _ in ids.uses())
    return None if reads_ids or len(list(part.all_nodes())) > len(part) else part


def read_from(part: ir.Graph, graph: ir.Graph, inputs: Mapping[str, ir.Value]) -> None:
    """Let a part of another graph read values of ``graph`` for its inputs, and its initializers."""
    used = ir.convenience.create_value_mapping(graph)
    for value in part.inputs:
        if value.uses():
            ir.convenience.replace_all_uses_with(value, inputs[str(value.name)])
    for name, value in part.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        existing = used[name].const_value if name in used else None
        same = existing is not None and ir.to_proto(existing) == ir.to_proto(tensor)
        outer = initializer(graph, name if same or name not in used else name + _SUFFIX, tensor)
        ir.convenience.replace_all_uses_with(value, outer)
    part.inputs.clear()
    part.initializers.clear()
    for node in part:
        node.name = f"{node.name}{_SUFFIX}"
        for value in node.outputs:
            value.name = f"{value.name}{_SUFFIX}"
            value.shape = value.shape if value.is_graph_output() else None


def _by_layer(value: ir.Value) -> tuple[int, int, int]:
    """Sort as these runtimes do: caches last, by layer, the decoder's first, keys first."""
    prefix, _, name = str(value.name).partition(".")
    if prefix not in (PAST, PRESENT):
        return -1, 0, 0
    layer, side, kind = name.split(".")
    return int(layer), int(side == "encoder"), int(kind == "value")
