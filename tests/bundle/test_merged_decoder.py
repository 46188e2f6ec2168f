"""The merged decoder: both branches give the decoder's logits, in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.bundle.merged_decoder import MERGED, write_merged
from edgetie.bundle.names import CONFIG, DECODER, ENCODER

WIDTH = 4
KEY, VALUE = "0.encoder.key", "0.encoder.value"
RANDOM = np.random.default_rng(0)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def weight(name: str) -> onnx.TensorProto:
    values = RANDOM.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    return numpy_helper.from_array(values, name)


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: list) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


def write_encoder(directory: Path, *, value_reads: str = "last_hidden_state") -> None:
    node = helper.make_node
    state = ("batch", "source", WIDTH)
    save(
        directory / ENCODER,
        [
            node("MatMul", ["inputs_embeds", "w"], ["last_hidden_state"], name="encode"),
            node("MatMul", ["last_hidden_state", "key"], [f"present.{KEY}"], name="key"),
            node("MatMul", [value_reads, "value"], [f"present.{VALUE}"], name="value"),
        ],
        [floats("inputs_embeds", *state)],
        [floats(n, *state) for n in ("last_hidden_state", f"present.{KEY}", f"present.{VALUE}")],
        [weight("w"), weight("key"), weight("value")],
    )


def write_decoder(directory: Path) -> None:
    """Its weight ``key`` has the name, but not the contents, of one of the encoder."""
    node = helper.make_node
    state = ("batch", "source", WIDTH)
    past = [f"past_key_values.{KEY}", f"past_key_values.{VALUE}"]
    save(
        directory / DECODER,
        [
            node("Add", past, ["sum"]),
            node("MatMul", ["sum", "key"], ["logits"]),
            node("Identity", ["past_key_values.0.decoder.key"], ["present.0.decoder.key"]),
        ],
        [*(floats(n, *state) for n in past), floats("past_key_values.0.decoder.key", *state)],
        [floats("logits", *state), floats("present.0.decoder.key", *state)],
        [weight("key")],
    )


def run(path: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_both_branches_give_the_logits_of_the_decoder(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write_decoder(tmp_path)
    assert write_merged(tmp_path)
    embeddings = RANDOM.standard_normal((1, 3, WIDTH)).astype(np.float32)
    own = {"past_key_values.0.decoder.key": embeddings}
    encoded = run(tmp_path / ENCODER, inputs_embeds=embeddings)
    cache = {f"past_key_values.{name}": encoded[f"present.{name}"] for name in (KEY, VALUE)}
    expected = run(tmp_path / DECODER, **cache, **own)["logits"]
    hidden, empty = encoded["last_hidden_state"], {n: a[:, :0] for n, a in cache.items()}
    for use_cache, past, states in ((True, cache, hidden[:, :0]), (False, empty, hidden)):
        outputs = run(
            tmp_path / MERGED,
            **past,
            **own,
            encoder_hidden_states=states,
            use_cache_branch=np.array([use_cache]),
        )
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5)
        np.testing.assert_array_equal(outputs[f"present.{KEY}"], encoded[f"present.{KEY}"])


def test_weights_and_caches_are_in_order(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write_decoder(tmp_path)
    write_merged(tmp_path)
    graph = onnx.load(tmp_path / MERGED).graph
    assert {tensor.name for tensor in graph.initializer} == {"key", "key.merged", "value"}
    caches = [value.name for value in graph.input if value.name.startswith("past")]
    parts = ("0.decoder.key", KEY, VALUE)
    assert caches == [f"past_key_values.{part}" for part in parts]
    assert [v.name for v in graph.output] == ["logits", *(f"present.{part}" for part in parts)]


def test_decoders_without_cross_attention_in_their_cache(tmp_path: Path) -> None:
    """As in a pair of which the decoder could be a model without encoder."""
    write_encoder(tmp_path)
    write_decoder(tmp_path)
    settings = {"model_type": "vision-encoder-decoder", "decoder": {"n_layer": 1}}
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    assert write_merged(tmp_path)
    embeddings = RANDOM.standard_normal((1, 3, WIDTH)).astype(np.float32)
    encoded = run(tmp_path / ENCODER, inputs_embeds=embeddings)
    cache = {f"past_key_values.{name}": encoded[f"present.{name}"] for name in (KEY, VALUE)}
    own = {"past_key_values.0.decoder.key": embeddings}
    expected = run(tmp_path / DECODER, **cache, **own)["logits"]
    hidden = encoded["last_hidden_state"]
    feeds = {"past_key_values.0.key": embeddings, "encoder_hidden_states": hidden}
    outputs = run(tmp_path / MERGED, **feeds)
    assert outputs.keys() == {"logits", "present.0.key"}
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5)


def test_projections_may_read_the_batch_size_of_any_input(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write_decoder(tmp_path)
    model = onnx.load(tmp_path / ENCODER)
    nodes = model.graph.node
    nodes[2].output[0] = "flat"
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, WIDTH]), "rest"))
    nodes.extend(
        [
            helper.make_node("Shape", ["inputs_embeds"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
            helper.make_node("Reshape", ["flat", "shape"], [f"present.{VALUE}"]),
        ]
    )
    onnx.save(model, str(tmp_path / ENCODER))
    assert write_merged(tmp_path)


def test_values_that_depend_on_more_than_the_hidden_state(tmp_path: Path) -> None:
    write_encoder(tmp_path, value_reads="inputs_embeds")
    write_decoder(tmp_path)
    assert not write_merged(tmp_path)
    assert not (tmp_path / MERGED).exists()


@pytest.mark.parametrize("version", [16, 18])
def test_opsets_must_agree(tmp_path: Path, version: int) -> None:
    write_encoder(tmp_path)
    write_decoder(tmp_path)
    model = onnx.load(tmp_path / ENCODER)
    model.opset_import[0].version = version
    onnx.save(model, str(tmp_path / ENCODER))
    assert not write_merged(tmp_path)
