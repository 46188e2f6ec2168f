"""transformers' helpers for packed images, replaced by arithmetic for one image."""

from __future__ import annotations

import pytest
import torch
from transformers import vision_utils

from edgetie.export.images.single_image import _attend_in_segments, _SingleImage, single_image


@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 4), (12, 20), (2, 2)])
def test_windows_are_those_of_transformers(height: int, width: int) -> None:
    grid = torch.tensor([[1, height, width]])
    image = _SingleImage(height * width)
    for merge, window, patch in ((2, 16, 4), (1, 12, 4)):
        order, starts = image.get_vision_window_index(grid, merge, window, patch)
        expected, expected_starts = vision_utils.get_vision_window_index(grid, merge, window, patch)
        torch.testing.assert_close(order, expected)
        torch.testing.assert_close(starts.unique_consecutive(), expected_starts)


def test_patches_attend_within_their_segment() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    starts = torch.tensor([0, 2, 2, 6])  # an empty segment too
    output, _ = _attend_in_segments(torch.nn.Identity(), query, key, value, None, 0.5, starts)
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = [
        attend(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scale=0.5)
        for a, b in ((0, 2), (2, 6))
    ]
    torch.testing.assert_close(output, torch.cat(parts, 2).transpose(1, 2))


def test_heads_share_keys() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    output, _ = _attend_in_segments(torch.nn.Identity(), query, key, value, None, 0.5)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_a_sum_of_embeddings_is_a_product() -> None:
    torch.manual_seed(0)
    table, indices, weights = torch.randn(9, 5), torch.randint(9, (4, 3)), torch.rand(4, 3)
    add_up = torch.nn.functional.embedding_bag
    expected = add_up(indices, table, per_sample_weights=weights, mode="sum")
    with single_image(torch.nn.Linear(1, 1), 4):
        result = add_up(indices, table, per_sample_weights=weights, mode="sum")
    torch.testing.assert_close(result, expected)


def test_a_convolution_over_whole_patches_is_a_matrix_product() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 4, stride=4)
    patches, image = torch.randn(7, 3, 4, 4), torch.randn(1, 3, 8, 8)
    expected = convolution(patches), convolution(image)
    program = {}
    for name, example in (("patches", patches), ("image", image)):
        with single_image(convolution, 7), torch.no_grad():
            program[name] = torch.export.export(convolution, (example,), strict=False)
    for result, example, wanted in zip(program.values(), (patches, image), expected, strict=True):
        torch.testing.assert_close(result.module()(example), wanted)
    assert "conv" not in str(program["patches"].graph)
    assert "conv" in str(program["image"].graph)


def test_nothing_stays_replaced() -> None:
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    before = modeling_qwen3_vl.get_vision_attention_seqlens
    with single_image(torch.nn.Linear(1, 1), 4):
        assert modeling_qwen3_vl.get_vision_attention_seqlens is before
        assert "int" in vars(vision_utils)
        assert "int" not in vars(modeling_qwen3_vl)  # no part of this module
    assert "int" not in vars(vision_utils)
