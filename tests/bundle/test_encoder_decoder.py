"""Files of other exporters become the two graphs of a bundle."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from split_decoders import write_split

from edgetie.bundle.encoder_decoder import UnknownFormError, read_encoder_decoder

PASTS = [f"past_key_values.0.{part}.{kind}"
         for part in ("decoder", "encoder") for kind in ("key", "value")]  # fmt: skip


@pytest.mark.parametrize("merged", [False, True])
def test_the_encoder_computes_keys_and_values(tmp_path: Path, merged: bool) -> None:
    paths = write_split(tmp_path, merged=merged)
    graphs = read_encoder_decoder(paths)
    encoder, decoder = graphs.encoder.graph, graphs.decoder.graph
    assert [value.name for value in encoder.outputs] == [
        "last_hidden_state", "present.0.encoder.key", "present.0.encoder.value",
    ]  # fmt: skip
    names = [value.name for value in decoder.inputs]
    assert sorted(map(str, names)) == ["encoder_attention_mask", "input_ids", *PASTS]
    assert [value.name for value in decoder.outputs] == [
        "logits", "present.0.decoder.key", "present.0.decoder.value",
    ]  # fmt: skip
    assert not [node for node in decoder if node.op_type == "If"]
    assert (graphs.encoder_path, graphs.first_path) == (paths[0], paths[1])


def test_projections_that_read_tokens_are_refused(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    model = onnx.load(paths[1])
    node = next(n for n in model.graph.node if n.output[0] == "key_rows")
    model.graph.node.insert(
        list(model.graph.node).index(node),
        onnx.helper.make_node("ReduceMax", ["e"], ["largest"], keepdims=0),
    )
    scaled = onnx.helper.make_node("Mul", ["encoder_hidden_states", "largest"], ["scaled"])
    model.graph.node.insert(list(model.graph.node).index(node), scaled)
    node.input[0] = "scaled"
    onnx.save(model, paths[1])
    with pytest.raises(UnknownFormError, match="more than encoder_hidden_states"):
        read_encoder_decoder(paths)


def test_another_input_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    model = onnx.load(paths[2])
    extra = onnx.helper.make_tensor_value_info("cache_position", onnx.TensorProto.INT64, ["t"])
    model.graph.input.append(extra)
    onnx.save(model, paths[2])
    with pytest.raises(UnknownFormError, match="input cache_position is not one"):
        read_encoder_decoder(paths)
