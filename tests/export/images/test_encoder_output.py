"""How image embeddings are stored in an encoder's output."""

from __future__ import annotations

import torch
from image_models import TOKEN, build, llava, qwen3_vl
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgetie.export.images.encoder_output import EncoderOutput, embed, image_encoder, run_encoder


def output(rows: object, **fields: object) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(pooler_output=rows, **fields)  # type: ignore[arg-type]


def test_rows_are_stored_as_the_encoder_does() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    described = EncoderOutput.of(output(first), output(second))
    assert (described.hidden_size, len(described.no_rows)) == (4, 1)
    made = described.make([first.flatten(0, 1)])
    assert made.pooler_output.shape == (1, 6, 4)
    parts = EncoderOutput.of(output([first[0], first[1]]), output([second[0], second[1]]))
    assert [each.shape for each in parts.make([first.flatten(0, 1)]).pooler_output] == [(6, 4)]


def test_what_is_the_same_for_all_images_is_kept() -> None:
    constant, rows = torch.arange(3.0), torch.randn(1, 2, 4)
    described = EncoderOutput.of(
        output(rows, last_hidden_state=constant), output(rows + 1, last_hidden_state=constant)
    )
    assert list(described.constants) == ["last_hidden_state"]
    assert torch.equal(described.make([rows[0]]).last_hidden_state, constant)


def test_deeper_layers_have_rows_of_their_own() -> None:
    model = build(qwen3_vl())
    feeds = {
        "pixel_values": torch.randn(16, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    rows = embed(model, feeds)
    described = EncoderOutput.of(run_encoder(model, feeds), run_encoder(model, feeds))
    assert len(rows) == len(described.no_rows) == 2
    made = described.make(rows)
    assert torch.equal(torch.cat(list(made.pooler_output)), rows[0])
    assert torch.equal(torch.cat(list(made.deepstack_features[0])), rows[1])


def test_the_part_with_the_encoder() -> None:
    model = build(llava())
    assert image_encoder(model) is model.model
    assert model.config.image_token_id == TOKEN
