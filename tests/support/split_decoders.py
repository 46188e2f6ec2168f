"""Write an encoder-decoder model as other exporters do: separate decoders, or a merged one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

VOCAB, WIDTH = 300, 48
CACHE = "float[batch,1,{},48] {}.0.{}.key, float[batch,1,{},48] {}.0.{}.value"

_ENCODER = """<ir_version: 8, opset_import: ["": 18]>
encoder (int64[batch,source] input_ids, int64[batch,source] attention_mask)
  => (float[batch,source,48] last_hidden_state) {
  x = Gather(table, input_ids)
  last_hidden_state = MatMul(x, w)
}"""

_CROSS = """
  size = Shape(e)
  zero = Constant<value_int = 0>()
  batch_size = Gather(size, zero)
  axis = Constant<value_ints = [0]>()
  batches = Unsqueeze(batch_size, axis)
  rest = Constant<value_ints = [-1, 1, 48]>()
  target = Concat<axis = 0>(batches, rest)
  key_rows = MatMul(encoder_hidden_states, wk)
  key_heads = Reshape(key_rows, target)
  present.0.encoder.key = Transpose<perm = [0, 2, 1, 3]>(key_heads)
  value_rows = MatMul(encoder_hidden_states, wv)
  value_heads = Reshape(value_rows, target)
  present.0.encoder.value = Transpose<perm = [0, 2, 1, 3]>(value_heads)"""

_BODY = """
  e = Gather(table, input_ids)
  heads = Constant<value_ints = [1]>()
  own = Unsqueeze(e, heads){cross}
  present.0.decoder.key = {own}
  present.0.decoder.value = Identity(present.0.decoder.key)
  time = Constant<value_int = 2>()
  sums = CumSum(present.0.decoder.key, time)
  tokens = Shape<start = 1, end = 2>(input_ids)
  start = Neg(tokens)
  most = Constant<value_ints = [1000000]>()
  times = Constant<value_ints = [2]>()
  q = Slice(sums, start, most, times)
  keys = Transpose<perm = [0, 1, 3, 2]>({prefix}.0.encoder.key)
  scores = MatMul(q, keys)
  mask_axes = Constant<value_ints = [1, 2]>()
  mask = Unsqueeze(encoder_attention_mask, mask_axes)
  is_kept = Cast<to = 9>(mask)
  lowest = Constant<value_float = -10000.0>()
  masked = Where(is_kept, scores, lowest)
  weights = Softmax(masked)
  read = MatMul(weights, {prefix}.0.encoder.value)
  both = Add(read, q)
  flat = Squeeze(both, heads)
  logits = MatMul(flat, head)
"""

_INPUTS = "int64[batch,source] encoder_attention_mask, int64[batch,target] input_ids"
_HIDDEN = "float[batch,source,48] encoder_hidden_states"
_LOGITS = "float[batch,target,300] logits"


def _cache(prefix: str, side: str, length: str) -> str:
    return CACHE.format(length, prefix, side, length, prefix, side)


_OWN = _cache("present", "decoder", "total")
_ALL = f"{_OWN}, {_cache('present', 'encoder', 'source')}"
_PASTS = f"{_cache('past_key_values', 'decoder', 'past')}, " + _cache(
    "past_key_values", "encoder", "source"
)


def _model(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    """Parse a model. The parser takes no dots in names."""
    header = '<ir_version: 8, opset_import: ["": 18]>'
    text = f"{header}\nd ({inputs}) => ({outputs}) {{{body}}}"
    model = parser.parse_model(re.sub(r"\.(?=0\.|encoder|decoder|key|value)", "__", text))
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    return model


def _first() -> onnx.ModelProto:
    body = _BODY.format(cross=_CROSS, own="Identity(own)", prefix="present")
    return _model(f"{_INPUTS}, {_HIDDEN}", f"{_LOGITS}, {_ALL}", body)


def _later(*, reads_one_token: bool = False) -> onnx.ModelProto:
    own = "Concat<axis = 2>(past_key_values.0.decoder.key, own)"
    body = _BODY.format(cross="", own=own, prefix="past_key_values")
    if reads_one_token:  # it adds up what it has read only up to the first of its tokens
        body = body.replace("start = Neg(tokens)", "start = Constant<value_ints = [-1]>()")
    return _model(f"{_INPUTS}, {_PASTS}", f"{_LOGITS}, {_OWN}", body)


def _merged(first: onnx.ModelProto, later: onnx.ModelProto) -> onnx.ModelProto:
    """One decoder with a branch for each, as optimum merges them."""
    graphs = first.graph, later.graph
    outputs = list(first.graph.output)
    names = [output.name for output in outputs]
    known = {output.name for output in later.graph.output}
    for name in names:  # a branch has all outputs
        if name not in known:
            past = name.replace("present", "past_key_values")
            later.graph.node.append(helper.make_node("Identity", [past], [name]))
    for graph in graphs:
        del graph.input[:], graph.output[:]
        graph.output.extend(outputs)
    inputs = list(
        _model(f"{_INPUTS}, {_HIDDEN}, {_PASTS}, bool[1] use_cache_branch", "", "").graph.input
    )
    node = helper.make_node(
        "If", ["use_cache_branch"], names, then_branch=later.graph, else_branch=first.graph
    )
    graph = helper.make_graph([node], "merged", inputs, outputs)
    return helper.make_model(graph, opset_imports=first.opset_import, ir_version=8)


def write_split(
    directory: Path, *, merged: bool = False, reads_one_token: bool = False
) -> list[Path]:
    """Write the files; encoder, decoders and head each have a copy of the table.

    Args:
        directory: where to.
        merged: one file for both decoders.
        reads_one_token: the decoder for later tokens is wrong for several of them.
    """
    random = np.random.default_rng(0)
    sizes = {"table": (VOCAB, WIDTH), "w": (WIDTH, WIDTH), "wk": (WIDTH,) * 2, "wv": (WIDTH,) * 2}
    weights = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    weights["head"] = np.ascontiguousarray(weights["table"].T)
    first, later = _first(), _later(reads_one_token=reads_one_token)
    models = {"encoder_model": parser.parse_model(_ENCODER)}
    if merged:
        models["decoder_model_merged"] = _merged(first, later)
    else:
        models |= {"decoder_model": first, "decoder_with_past_model": later}
    paths = []
    for name, model in models.items():
        used = {n for node in _nodes(model.graph) for n in node.input}
        model.graph.initializer.extend(
            numpy_helper.from_array(array, key) for key, array in weights.items() if key in used
        )
        paths.append(directory / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return paths


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [*graph.node, *(node for each in inner for node in _nodes(each))]
