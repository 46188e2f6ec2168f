"""Write the graphs of a vision-language model that read embeddings, for other runtimes.

onnxruntime-genai and transformers.js put image embeddings into the places of a prompt themselves.
Their decoder reads ``inputs_embeds`` instead of tokens. The graphs are made of the bundle's encoder
and decoder, and read the same bytes of its data file.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.merged_decoder import MERGED
from edgetie.bundle.names import DECODER, ENCODER, IMAGE
from edgetie.graph.matching import last_dimension, only_user, operator, producer, rank
from edgetie.graph.nodes import Nodes

VISION = "vision_encoder.onnx"
"""The graph from images to ``image_features``."""
EMBED = "embed_tokens.onnx"
"""The graph from tokens to ``inputs_embeds``."""
EMBEDDING = "embedding.onnx"
"""The graph from tokens and ``image_features`` to ``inputs_embeds``."""
FEATURES = "image_features"
EMBEDS = "inputs_embeds"
_TOKENS = "input_ids"
_MOVING_OPERATORS = {
    "Cast", "Concat", "Gather", "GatherND", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class _Places:
    """Where a decoder reads tokens and images.

    Attributes:
        ids: tokens ``(batch, sequence)`` in the order in which the decoder reads them.
        token: the image token.
        is_image: whether each of ``ids`` is this token.
        embedded: embeddings of ``ids``.
        placed: ``embedded`` with those of images in their places, and for each deeper layer that
            adds image embeddings what it adds, 0 elsewhere. All are ``(batch, sequence, hidden)``.
    """

    ids: ir.Value
    token: ir.Value
    is_image: ir.Value
    embedded: ir.Value
    placed: list[ir.Value]


def write_embedding_graphs(directory: Path) -> int | None:
    """Write the graphs next to ``encoder_model.onnx`` and ``decoder_model.onnx``.

    What a decoder must know of a token besides its embedding is in further columns of
    ``inputs_embeds``: the embeddings that deeper layers add, and whether it is an image token.

    Returns:
        The number of columns, or ``None`` if image embeddings do not take the places of tokens.
        Nothing is written then.
    """
    encoder, decoder = (ir.load(directory / name) for name in (ENCODER, DECODER))
    places = _find_places(decoder.graph)
    if places is None:
        return None
    embed = ir.Model(_extract_embedding(decoder.graph, places), ir_version=decoder.ir_version)
    token = places.token.const_value
    hidden, columns = last_dimension(places.embedded), _read_embeddings(decoder, places)
    if columns is None or hidden is None or token is None:
        return None
    _append_columns(embed.graph, EMBEDS, columns - hidden, fill=0.0)
    _append_columns(encoder.graph, FEATURES, columns % hidden, fill=1.0)
    for model, name in ((encoder, VISION), (embed, EMBED), (decoder, MERGED)):
        ir.save(model, directory / name)
    _place_images(embed.graph, token)
    ir.save(embed, directory / EMBEDDING)
    return columns


def _find_places(graph: ir.Graph) -> _Places | None:
    placed = [_follow(value) for value in graph.inputs if str(value.name).startswith(IMAGE)]
    where = only_user(placed[0], "Where") if placed else None
    if where is None or where.inputs[2] is None:
        return None
    mask = producer(where.inputs[0], "Unsqueeze")
    equal = producer(mask.inputs[0], "Equal") if mask else None
    ids, token = equal.inputs if equal else (None, None)
    if equal is None or ids is None or token is None or _has_other_uses(graph, ids):
        return None
    placed[0] = where.outputs[0]
    return _Places(ids, token, equal.outputs[0], where.inputs[2], placed)


def _follow(value: ir.Value) -> ir.Value:
    """Follow image embeddings to where they are added or chosen, past operators that move them."""
    while (node := only_user(value)) is not None and operator(node) in _MOVING_OPERATORS:
        value = node.outputs[0]
    return value


def _has_other_uses(graph: ir.Graph, ids: ir.Value) -> bool:
    """Whether a graph reads its tokens for anything but their shape and to compute ``ids``."""
    pending, nodes = [ids], set[ir.Node]()
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            pending += [value for value in node.inputs if value is not None]
    pending = [value for value in graph.inputs if value.name == _TOKENS and value is not ids]
    while pending:
        users = [node for node, _ in pending.pop().uses() if node.op_type != "Shape"]
        if any(node not in nodes for node in users):
            return True
        pending += [value for node in users for value in node.outputs if value is not ids]
    return False


def _extract_embedding(graph: ir.Graph, places: _Places) -> ir.Graph:
    """Extract what computes the embeddings of tokens."""
    part = ir.convenience.extract(graph, [places.ids], [places.embedded])
    part.inputs[0].name = _TOKENS
    return part


def _read_embeddings(decoder: ir.Model, places: _Places) -> int | None:
    """Let a decoder read ``inputs_embeds`` instead of tokens and images.

    In place of tokens it gets their indices, and orders them as it orders tokens.

    Returns:
        The number of columns, or ``None`` if it reads tokens for anything else.
    """
    graph, ids = decoder.graph, places.ids
    parts = [ir.Value(type=value.type, shape=value.shape) for value in places.placed]
    ir.convenience.replace_all_uses_with(places.placed, parts)
    graph.outputs.append(ids)  # for as long as nothing else reads them
    common.RemoveUnusedNodesPass()(decoder)
    graph.outputs.pop()
    if {node.op_type for node, _ in ids.uses()} - {"Shape", "Equal"}:
        return None
    if places.is_image.uses():
        parts.append(ir.Value(type=places.embedded.type))
    sizes = [last_dimension(value) or 1 for value in parts]
    (tokens,) = (value for value in graph.inputs if value.name == _TOKENS)
    assert tokens.shape is not None
    shape = ir.Shape([*tokens.shape, sum(sizes)])
    embeds = ir.Value(name=EMBEDS, type=places.embedded.type, shape=shape)
    nodes = Nodes(graph)
    batch = nodes("Shape", embeds, start=0, end=2)
    zero, one = (nodes.integers(f"indices.{number}", number) for number in (0, 1))
    indices = nodes("Range", zero, nodes("ReduceProd", batch, keepdims=0), one)
    indices = nodes("Reshape", indices, batch)
    rows = nodes("Reshape", embeds, nodes.integers("rows.shape", [-1, sum(sizes)]))
    graph.insert_before(graph[0], nodes.nodes)
    ir.convenience.replace_all_uses_with(tokens, indices)
    ids = indices if ids is tokens else ids
    nodes = Nodes(graph)
    split = nodes.integers("columns", sizes)
    nodes.op_multi_out("Split", [nodes("Gather", rows, ids), split], {"axis": -1}, outputs=parts)
    if places.is_image.uses():
        flag = nodes.cast(nodes.along("Squeeze", parts[-1], -1), ir.DataType.BOOL)
        ir.convenience.replace_all_uses_with(places.is_image, flag)
    start = ids.producer()
    assert start is not None
    graph.insert_after(start, nodes.nodes)
    common.RemoveUnusedNodesPass()(decoder)
    others = [value for value in graph.inputs if not str(value.name).startswith((_TOKENS, IMAGE))]
    graph.inputs[:] = [embeds, *others]
    return sum(sizes)


def _append_columns(graph: ir.Graph, name: str, count: int, *, fill: float) -> None:
    """Join all outputs to one of this name, with so many more columns."""
    nodes = Nodes(graph)
    joined, *others = graph.outputs
    dtype = joined.dtype
    assert dtype is not None
    if others:
        joined = nodes("Concat", joined, *others, axis=-1)
    if count:
        pads = nodes.integers("pads", [*[0] * (2 * rank(joined) - 1), count])
        joined = nodes("Pad", joined, pads, nodes.number(fill, dtype))
    graph.extend(nodes.nodes)
    joined.name = name
    graph.outputs[:] = [joined]


def _place_images(embed: ir.Graph, token: ir.TensorProtocol) -> None:
    """Let a graph that embeds tokens put the rows of ``image_features`` into their places."""
    (embeds,) = embed.outputs
    assert embeds.shape is not None
    shape = ir.Shape(["rows", embeds.shape[-1]])
    features = ir.Value(name=FEATURES, type=embeds.type, shape=shape)
    embed.inputs.append(features)
    nodes = Nodes(embed)
    places = nodes("NonZero", nodes("Equal", embed.inputs[0], nodes.tensor("image_token", token)))
    placed = nodes("ScatterND", embeds, nodes.transpose(places), features)
    embed.extend(nodes.nodes)
    embed.outputs[:] = [placed]
    embeds.name, placed.name, placed.shape = "token_embeds", EMBEDS, embeds.shape
