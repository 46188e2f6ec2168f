"""Write ``decoder_model_merged.onnx``, the decoder that optimum and transformers.js read."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import CONFIG, DECODER, ENCODER, ENCODER_MASK
from edgetie.graph.editing import initializer
from edgetie.graph.tensors import PAST, PRESENT

MERGED = "decoder_model_merged.onnx"

LAST_HIDDEN = "last_hidden_state"
"""Output of an encoder."""
HIDDEN = "encoder_hidden_states"
"""Input of a decoder that computes cross-attention's keys and values: that output."""
USE_CACHE = "use_cache_branch"
"""Input of a merged decoder: whether it reads the cache."""
_TOKENS = "input_ids"
_MASKS = ("attention_mask", _TOKENS)
_SUFFIX = ".merged"
"""Appended to names of one graph that may be in use in the other."""


def write_merged(directory: Path) -> bool:
    """Write the merged decoder next to ``encoder_model.onnx`` and ``decoder_model.onnx``.

    It computes the keys and values of cross-attention from ``encoder_hidden_states``, unless
    ``use_cache_branch`` is set. It reads the weights of the two graphs, so the file stores none.
    If the decoder could be a model without encoder, such as GPT-2, it always computes them: the
    cache of transformers.js has that model's names.

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
    graph.inputs.append(hidden)
    used = ir.convenience.create_value_mapping(graph)
    mask = {name: used[ENCODER_MASK] for name in _MASKS if ENCODER_MASK in used}
    read_from(projections, graph, {LAST_HIDDEN: hidden} | mask)
    inputs = {str(value.name): value for value in graph.inputs}
    pasts = [inputs[str(value.name).replace(PRESENT, PAST, 1)] for value in cross]
    project = _project_always if _has_plain_cache(directory) else _project_once
    project(graph, projections, pasts)
    for values in (graph.inputs, graph.outputs):
        values[:] = sorted(values, key=_by_layer)
    ir.save(decoder, directory / MERGED)
    return True


def _has_plain_cache(directory: Path) -> bool:
    """Whether a model is a pair whose decoder's configuration is not of an encoder-decoder model.

    Its cache has no part for cross-attention then, in transformers.js.
    """
    settings = read_json(directory / CONFIG)
    decoder = settings.get("decoder")
    is_pair = str(settings.get("model_type")).endswith("encoder-decoder")
    return is_pair and isinstance(decoder, dict) and "decoder_layers" not in decoder


def _project_always(graph: ir.Graph, projections: ir.Graph, pasts: list[ir.Value]) -> None:
    """Compute cross-attention's keys and values each time, in place of the inputs ``pasts``."""
    results, nodes = list(projections.outputs), list(projections)
    projections.outputs.clear()
    projections.remove(nodes)
    graph.insert_before(graph[0], nodes)
    ir.convenience.replace_all_uses_with(pasts, results)
    graph.inputs[:] = [value for value in graph.inputs if value not in pasts]
    for value in (*graph.inputs, *graph.outputs):
        value.name = str(value.name).replace(".decoder.", ".")


def _project_once(graph: ir.Graph, projections: ir.Graph, pasts: list[ir.Value]) -> None:
    """Compute cross-attention's keys and values unless ``use_cache_branch``, and return them."""
    use_cache = ir.Value(name=USE_CACHE, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    graph.inputs.append(use_cache)
    presents = [_like(past, str(past.name).replace(PAST, PRESENT, 1)) for past in pasts]
    ir.convenience.replace_all_uses_with(pasts, presents)
    copies = [
        ir.node("Identity", [past], outputs=[_like(value, f"{value.name}{_SUFFIX}")])
        for past, value in zip(pasts, presents, strict=True)
    ]
    cached = ir.Graph([], [node.outputs[0] for node in copies], nodes=copies, name="cached")
    branches = {"then_branch": cached, "else_branch": projections}
    graph.insert_before(graph[0], ir.node("If", [use_cache], branches, outputs=presents))
    graph.outputs.extend(presents)


def _like(value: ir.Value, name: str) -> ir.Value:
    """Make a value of the same type and shape."""
    return ir.Value(name=name, type=value.type, shape=value.shape)


def _extract_projections(graph: ir.Graph, cross: list[ir.Value]) -> ir.Graph | None:
    """Extract what computes keys and values from the last hidden state and the mask.

    Returns:
        The graph, or ``None`` if they depend on anything else or its nodes contain subgraphs.
    """
    names = [str(value.name) for value in graph.inputs]
    masks = _MASKS if "attention_mask" in names else ()  # the input ids have the same shape
    try:
        part = ir.convenience.extract(graph, [LAST_HIDDEN, *names], cross)
    except ValueError:
        return None
    hidden, *others = part.inputs
    for value in others:
        for node, _ in list(value.uses()):
            if node.op_type == "Shape" and _is_batch_size(node):
                node.replace_input_with(0, hidden)
            elif value.name not in masks or (value.name == _TOKENS and node.op_type != "Shape"):
                return None
    return None if len(list(part.all_nodes())) > len(part) else part


def _is_batch_size(node: ir.Node) -> bool:
    """Whether a Shape returns the size of the first axis only."""
    return node.attributes.get_int("start", 0) == 0 and node.attributes.get_int("end", -1) == 1


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
    layer, *side, kind = name.split(".")
    return int(layer), int(side == ["encoder"]), int(kind == "value")
