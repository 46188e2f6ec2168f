"""``decoder_model_merged.onnx``: an encoder–decoder bundle's decoder as optimum and transformers.js
read it.

Theirs makes the keys and values of cross-attention itself, of ``encoder_hidden_states``, unless
``use_cache_branch`` says that they are given; ours has them from the encoder. The graph is put
together from the bundle's own two, over the same weights, so it adds nothing but itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgetie.bundle.names import DECODER, ENCODER, ENCODER_MASK

MERGED = "decoder_model_merged.onnx"

_HIDDEN, _GIVEN, _BRANCH = "last_hidden_state", "encoder_hidden_states", "use_cache_branch"
_PAST, _PRESENT = "past_key_values.", "present."


def write_merged(directory: Path) -> bool:
    """Write the file beside ``encoder_model.onnx`` and ``decoder_model.onnx``.

    Returns:
        Whether it could: not if the keys and values of cross-attention come of more than the
        encoder's last hidden state, or the decoder has no cache.
    """
    encoder, decoder = (
        onnx.load(directory / name, load_external_data=False) for name in (ENCODER, DECODER)
    )
    made = [value for value in encoder.graph.output if value.name.startswith(_PRESENT)]
    crossed = [value.name for value in made]
    projections = _projections(encoder.graph, crossed)
    if not crossed or projections is None or not _join_opsets(decoder, encoder):
        return False
    graph = decoder.graph
    _add_weights(graph, encoder.graph, projections)
    past = {name: name.replace(_PRESENT, _PAST, 1) for name in crossed}
    choice = helper.make_node(
        "If",
        [_BRANCH],
        crossed,
        then_branch=_branch(
            "given", made, [helper.make_node("Identity", [past[n]], [f"{n}.own"]) for n in past]
        ),
        else_branch=_branch("made", made, projections),
    )
    chosen = {old: new for new, old in past.items()}
    for node in graph.node:
        node.input[:] = [chosen.get(name, name) for name in node.input]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([choice, *nodes])
    outputs = {value.name: value for value in (*graph.output, *encoder.graph.output)}
    hidden = outputs.pop(_HIDDEN)
    hidden.name = _GIVEN
    inputs = {value.name: value for value in graph.input}
    inputs[_GIVEN] = hidden
    inputs[_BRANCH] = helper.make_tensor_value_info(_BRANCH, TensorProto.BOOL, [1])
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.extend(inputs[name] for name in _layer_by_layer(inputs, _PAST))
    graph.output.extend(outputs[name] for name in _layer_by_layer(outputs, _PRESENT))
    onnx.save(decoder, directory / MERGED)
    return True


def _projections(graph: GraphProto, crossed: list[str]) -> list[NodeProto] | None:
    """The nodes between the last hidden state and the keys and values, reading and making names
    that a branch may use; ``None`` if they read anything else.
    """
    needed, nodes = set(crossed), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and _HIDDEN not in node.output:
            nodes.append(NodeProto.FromString(node.SerializeToString()))
            needed.update(name for name in node.input if name)
    nodes.reverse()
    names = {_HIDDEN: _GIVEN, "attention_mask": ENCODER_MASK}
    if any(node.op_type == "Shape" and node.input[0] == "input_ids" for node in nodes):
        names["input_ids"] = ENCODER_MASK  # of the same shape
    masked = any(value.name == "attention_mask" for value in graph.input)
    for value in graph.input:
        readers = [node for node in nodes if value.name in node.input]
        shapes = all(node.op_type == "Shape" for node in readers)
        if readers and not (masked and (value.name == "attention_mask" or shapes)):
            return None
    for node in nodes:
        if any(attribute.HasField("g") for attribute in node.attribute):
            return None
        own = {name for name in node.output if name}
        names |= {name: f"{name}.own" for name in own}
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = f"{node.name}.own"
    return nodes


def _add_weights(graph: GraphProto, source: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Give a graph the initializers of another one that some nodes read; a name that is taken for
    something else changes, in the nodes too.
    """
    there: dict[str, object] = {name: node for node in graph.node for name in node.output}
    there |= {value.name: value for value in graph.input}
    there |= {tensor.name: tensor for tensor in graph.initializer}
    names = {}
    read = {name for node in nodes for name in node.input}
    for tensor in source.initializer:
        if tensor.name in read and there.get(tensor.name) != tensor:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            if tensor.name in there:
                copy.name = names[tensor.name] = f"{tensor.name}.own"
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]


def _branch(name: str, made: Iterable[ValueInfoProto], nodes: list[NodeProto]) -> GraphProto:
    outputs = [helper.make_value_info(f"{value.name}.own", value.type) for value in made]
    return helper.make_graph(nodes, name, [], outputs)


def _layer_by_layer(names: Iterable[str], prefix: str) -> list[str]:
    """Names in the order that these runtimes take caches in: of each layer the decoder's key and
    value, then the encoder's; what is no cache comes first.
    """

    def place(name: str) -> tuple[int, int, int]:
        if not name.startswith(prefix):
            return (-1, 0, 0)
        layer, side, kind = name.removeprefix(prefix).split(".")
        return int(layer), int(side == "encoder"), int(kind == "value")

    return sorted(names, key=place)


def _join_opsets(model: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Give a model the operators of another one; whether they have the same version of each."""
    known = {opset.domain: opset.version for opset in model.opset_import}
    for opset in other.opset_import:
        if known.setdefault(opset.domain, opset.version) != opset.version:
            return False
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in known.items())
    return True
