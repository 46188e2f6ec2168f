"""Hand-built models that add up embeddings, so that numpy gives their logits in one line.

The cache holds the embedding of every token. Logits are the sum of all of them, those of the
encoder included, times the transposed embedding table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.bundle.names import AUDIO_LM, DECODER, ENCODER, MODEL, PREFILL, SPEECH
from edgetie.graph.tensors import TensorInfo

VOCAB, WIDTH, CONTEXT, CHUNK = 24, 8, 10, 4
TABLE = np.random.default_rng(3).normal(size=(VOCAB, WIDTH)).astype(np.float32)
HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
AUDIO_TOKEN = 23


def logits(*embeddings: np.ndarray) -> np.ndarray:
    """Logits ``(VOCAB,)`` of a sequence with these embeddings ``(count, WIDTH)``."""
    return np.concatenate(embeddings).sum(axis=0) @ TABLE.T


def write_graph(path: Path, text: str, table: bool = True) -> onnx.ModelProto:
    """Write a graph from ONNX's text syntax, which has no dots in names."""
    text = re.sub(r"(?:past_key_values|present)[\w.]+", lambda m: m[0].replace(".", "__"), text)
    model = parser.parse_model(f"{HEADER}\n{text}")
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("__", ".") for name in names]
    if table:
        model.graph.initializer.append(numpy_helper.from_array(TABLE, "table"))
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return model


def signature(model: onnx.ModelProto, **settings: object) -> Signature:
    inputs, outputs = (
        [
            TensorInfo(
                value.name,
                onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        for values in (model.graph.input, model.graph.output)
    )
    return Signature(inputs, outputs, vocab_size=VOCAB, **settings)  # type: ignore[arg-type]


def write_fixed(directory: Path) -> Path:
    """A bundle of fixed shapes: one graph for a token, one for ``CHUNK`` tokens of a prompt."""
    for name, count in ((PREFILL, CHUNK), (MODEL, 1)):
        past = CONTEXT - count
        model = write_graph(
            directory / name,
            f"""fixed (int64[1, {count}] input_ids, int64[1, {CONTEXT}] attention_mask,
                       float[1, 1, {past}, {WIDTH}] past_key_values.0.key)
              => (float[1, 1, {VOCAB}] logits, float[1, 1, {CONTEXT}, {WIDTH}] present.0.key) {{
              one = Constant <value_ints: ints = [1]> ()
              ends = Constant <value_ints: ints = [1, 3]> ()
              token_axis = Constant <value_ints: ints = [2]> ()
              embedded = Gather (table, input_ids)
              new = Unsqueeze (embedded, one)
              present.0.key = Concat <axis = 2> (past_key_values.0.key, new)
              mask = CastLike (attention_mask, present.0.key)
              mask4 = Unsqueeze (mask, ends)
              valid = Mul (present.0.key, mask4)
              total = ReduceSum <keepdims = 0> (valid, token_axis)
              transposed = Transpose (table)
              logits = MatMul (total, transposed)
            }}""",
        )
    manifest = Manifest({}, "causal-lm", "fp32", signature(model), [], 0, weights_in_memory="mixed")
    write_manifest(directory, manifest)
    return directory


DECODE = f"""decode (int64[batch, sequence] input_ids, int64[batch, source] encoder_attention_mask,
    float[batch, 1, past, {WIDTH}] past_key_values.0.decoder.key,
    float[batch, 1, source, {WIDTH}] past_key_values.0.encoder.key)
  => (float[batch, 1, {VOCAB}] logits, float[batch, 1, total, {WIDTH}] present.0.decoder.key) {{
  one = Constant <value_ints: ints = [1]> ()
  ends = Constant <value_ints: ints = [1, 3]> ()
  token_axis = Constant <value_ints: ints = [2]> ()
  embedded = Gather (table, input_ids)
  new = Unsqueeze (embedded, one)
  present.0.decoder.key = Concat <axis = 2> (past_key_values.0.decoder.key, new)
  mask = CastLike (encoder_attention_mask, new)
  mask4 = Unsqueeze (mask, ends)
  valid = Mul (past_key_values.0.encoder.key, mask4)
  source_sum = ReduceSum <keepdims = 0> (valid, token_axis)
  sum = ReduceSum <keepdims = 0> (present.0.decoder.key, token_axis)
  total_sum = Add (source_sum, sum)
  transposed = Transpose (table)
  logits = MatMul (total_sum, transposed)
}}"""


def write_seq2seq(directory: Path, start: tuple[int, ...] = (1,)) -> Path:
    """A bundle with an encoder of text."""
    encoder = write_graph(
        directory / ENCODER,
        f"""encode (int64[batch, source] input_ids, int64[batch, source] attention_mask)
          => (float[batch, 1, source, {WIDTH}] present.0.encoder.key) {{
          one = Constant <value_ints: ints = [1]> ()
          embedded = Gather (table, input_ids)
          present.0.encoder.key = Unsqueeze (embedded, one)
        }}""",
    )
    decoder = write_graph(directory / DECODER, DECODE)
    described = signature(decoder, start_token_ids=list(start), eos_token_ids=[2], max_positions=9)
    manifest = Manifest({}, "seq2seq-lm", "fp32", described, [], 0, signature(encoder), "mixed")
    write_manifest(directory, manifest)
    return directory


def write_speech(directory: Path, **settings: object) -> Path:
    """A bundle with an encoder of waveforms, whose one key is their mean times a table row."""
    encoder = write_graph(
        directory / ENCODER,
        f"""encode (float[batch, samples] input_values)
          => (float[batch, 1, 1, {WIDTH}] present.0.encoder.key) {{
          one = Constant <value_ints: ints = [1]> ()
          three = Constant <value_ints: ints = [1, 2, 3]> ()
          row = Constant <value_ints: ints = [5]> ()
          mean = ReduceMean <keepdims = 0> (input_values, one)
          mean4 = Unsqueeze (mean, three)
          embedding = Gather (table, row)
          present.0.encoder.key = Mul (mean4, embedding)
        }}""",
    )
    text = DECODE.replace("int64[batch, source] encoder_attention_mask,", "")
    text = text.replace("mask = CastLike (encoder_attention_mask, new)", "")
    text = text.replace("mask4 = Unsqueeze (mask, ends)", "")
    text = text.replace("Mul (past_key_values.0.encoder.key, mask4)",
                        "Identity (past_key_values.0.encoder.key)")  # fmt: skip
    settings = {"start_token_ids": [1, 4], "eos_token_ids": [2], "max_positions": 9} | settings
    described = signature(write_graph(directory / DECODER, text), **settings)
    manifest = Manifest({}, SPEECH, "fp32", described, [], 0, signature(encoder), "mixed")
    write_manifest(directory, manifest)
    return directory


def write_audio_lm(directory: Path, frames: int | str = "frames") -> Path:
    """A bundle whose encoder makes an embedding of every frame of ``(1, WIDTH, frames)``."""
    encoder = write_graph(
        directory / ENCODER,
        f"""encode (float[batch, {WIDTH}, {frames}] input_features)
          => (float[count, {WIDTH}] audio_embeds) {{
          by_frame = Transpose <perm = [0, 2, 1]> (input_features)
          shape = Constant <value_ints: ints = [-1, {WIDTH}]> ()
          audio_embeds = Reshape (by_frame, shape)
        }}""",
        table=False,
    )
    decoder = write_graph(
        directory / DECODER,
        f"""decode (int64[batch, sequence] input_ids, float[count, {WIDTH}] audio_embeds,
                    float[batch, 1, past, {WIDTH}] past_key_values.0.key)
          => (float[batch, 1, {VOCAB}] logits, float[batch, 1, total, {WIDTH}] present.0.key) {{
          one = Constant <value_ints: ints = [1]> ()
          zero = Constant <value_ints: ints = [0]> ()
          pairs = Constant <value_ints: ints = [1, 0]> ()
          token_axis = Constant <value_ints: ints = [2]> ()
          audio_token = Constant <value_int: int = {AUDIO_TOKEN}> ()
          is_audio = Equal (input_ids, audio_token)
          indices = NonZero (is_audio)
          places = Transpose (indices)
          embedded = Gather (table, input_ids)
          mixed = ScatterND (embedded, places, audio_embeds)
          new = Unsqueeze (mixed, one)
          present.0.key = Concat <axis = 2> (past_key_values.0.key, new)
          sum = ReduceSum <keepdims = 0> (present.0.key, token_axis)
          transposed = Transpose (table)
          logits = MatMul (sum, transposed)
        }}""",
    )
    described = signature(decoder, audio_token_id=AUDIO_TOKEN, eos_token_ids=[2], max_positions=20)
    manifest = Manifest({}, AUDIO_LM, "fp32", described, [], 0, signature(encoder), "mixed")
    write_manifest(directory, manifest)
    return directory


def word_tokenizer() -> Any:
    """A tokenizer of one word a token: ``w0``, ``w1`` and so on."""
    import tokenizers

    vocabulary = {f"w{index}": index for index in range(VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer
