"""Write ``decoder_model_merged.onnx``, the decoder that optimum and transformers.js read.

Their decoder computes the keys and values of cross-attention from ``encoder_hidden_states`` unless
``use_cache_branch`` is set. A bundle's decoder gets them from the encoder. The merged graph joins
the two graphs of the bundle over the same weights, so the file itself stores none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgetie.bundle.names import DECODER, ENCODER, ENCODER_MASK

MERGED = "decoder_model_merged.onnx"

_LAST_HIDDEN, _ENCODER_HIDDEN = "last_hidden_state", "encoder_hidden_states"
_USE_CACHE = "use_cache_branch"
_PAST, _PRESENT = "past_key_values.", "present."
_SUFFIX = ".merged"
"""Appended to names of the encoder that may be in use in the decoder."""


def write_merged(directory: Path) -> bool:
    """Write the merged decoder next to ``encoder_model.onnx`` and ``decoder_model.onnx``.

    Returns:
        Whether it was written. It cannot be if the keys and values of cross-attention depend on
        more than the encoder's last hidden state, or if the decoder has no cache.
    """
    encoder, decoder = (
        onnx.load(directory / name, load_external_data=False) for name in (ENCODER, DECODER)
    )
    values = [value for value in encoder.graph.output if value.name.startswith(_PRESENT)]
    cross = [value.name for value in values]
    projections = _copy_projections(encoder.graph, cross)
    if not cross or projections is None or not _merge_opsets(decoder, encoder):
        return False
    graph = decoder.graph
    _copy_weights(graph, encoder.graph, projections)
    past = {name: name.replace(_PRESENT, _PAST, 1) for name in cross}
    copies = [helper.make_node("Identity", [past[name]], [f"{name}{_SUFFIX}"]) for name in cross]
    select = helper.make_node(
        "If",
        [_USE_CACHE],
        cross,
        then_branch=_branch("cached", values, copies),
        else_branch=_branch("computed", values, projections),
    )
    present = {past_name: name for name, past_name in past.items()}
    for node in graph.node:
        node.input[:] = [present.get(name, name) for name in node.input]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([select, *nodes])
    outputs = {value.name: value for value in (*graph.output, *encoder.graph.output)}
    hidden = outputs.pop(_LAST_HIDDEN)
    hidden.name = _ENCODER_HIDDEN
    inputs = {value.name: value for value in graph.input}
    inputs[_ENCODER_HIDDEN] = hidden
    inputs[_USE_CACHE] = helper.make_tensor_value_info(_USE_CACHE, TensorProto.BOOL, [1])
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.extend(inputs[name] for name in _sort_by_layer(inputs, _PAST))
    graph.output.extend(outputs[name] for name in _sort_by_layer(outputs, _PRESENT))
    onnx.save(decoder, directory / MERGED)
    return True


def _copy_projections(graph: GraphProto, cross: list[str]) -> list[NodeProto] | None:
    """Copy the nodes that compute keys and values from the last hidden state, with new names.

    Returns:
        The copies, or ``None`` if these nodes read anything else or contain subgraphs.
    """
    needed, nodes = set(cross), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and _LAST_HIDDEN not in node.output:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
            needed.update(name for name in node.input if name)
    nodes.reverse()
    names = {_LAST_HIDDEN: _ENCODER_HIDDEN, "attention_mask": ENCODER_MASK}
    if any(node.op_type == "Shape" and node.input[0] == "input_ids" for node in nodes):
        names["input_ids"] = ENCODER_MASK  # has the same shape
    has_mask = any(value.name == "attention_mask" for value in graph.input)
    for value in graph.input:
        readers = [node for node in nodes if value.name in node.input]
        only_shape = all(node.op_type == "Shape" for node in readers)
        if readers and not (has_mask and (value.name == "attention_mask" or only_shape)):
            return None
    for node in nodes:
        if any(attribute.HasField("g") for attribute in node.attribute):
            return None
        names |= {name: f"{name}{_SUFFIX}" for name in node.output if name}
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name += _SUFFIX
    return nodes


def _copy_weights(graph: GraphProto, source: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Copy the initializers of ``source`` that nodes read; rename those whose name is in use."""
    used: dict[str, object] = {name: node for node in graph.node for name in node.output}
    used |= {value.name: value for value in graph.input}
    used |= {tensor.name: tensor for tensor in graph.initializer}
    names = {}
    read = {name for node in nodes for name in node.input}
    for tensor in source.initializer:
        if tensor.name in read and used.get(tensor.name) != tensor:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            if tensor.name in used:
                copy.name = names[tensor.name] = f"{tensor.name}{_SUFFIX}"
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]


def _branch(name: str, values: Iterable[ValueInfoProto], nodes: list[NodeProto]) -> GraphProto:
    outputs = [helper.make_value_info(f"{value.name}{_SUFFIX}", value.type) for value in values]
    return helper.make_graph(nodes, name, [], outputs)


def _sort_by_layer(names: Iterable[str], prefix: str) -> list[str]:
    """Sort names in the order in which these runtimes expect caches.

    Other names come first. Then follow, for each layer, key and value of the decoder and key and
    value of the encoder.
    """

    def key(name: str) -> tuple[int, int, int]:
        if not name.startswith(prefix):
            return (-1, 0, 0)
        layer, side, kind = name.removeprefix(prefix).split(".")
        return int(layer), int(side == "encoder"), int(kind == "value")

    return sorted(names, key=key)


def _merge_opsets(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Add the opset imports of another model; return whether no versions differ."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for opset in other.opset_import:
        if versions.setdefault(opset.domain, opset.version) != opset.version:
            return False
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in versions.items())
    return True
