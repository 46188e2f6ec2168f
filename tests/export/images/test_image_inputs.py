"""What image encoders read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgetie.bundle.names import (
    GRID,
    MASKED_SIZES,
    PATCH_MASK,
    PATCH_SIZES,
    PIXEL_SIZES,
    PIXELS,
    POSITIONS,
)
from edgetie.export.images.image_inputs import (
    FixedImages,
    ImageInputs,
    PaddedPatches,
    Patches,
    Pixels,
)

FLAT = Patches((), 1, (96,), GRID, unit=4)
PACKED = Patches((1, 3, 14), 14, (), PATCH_SIZES, unit=4)


@pytest.mark.parametrize(
    ("inputs", "small", "large", "axes"),
    [
        (FixedImages({PIXELS: (3, 8, 8)}), (1, 3, 8, 8), (2, 3, 8, 8), {0: "images"}),
        (FixedImages({PIXELS: (3, 8, 8)}, 1), (1, 1, 3, 8, 8), (1, 2, 3, 8, 8), {1: "images"}),
        (FLAT, (32, 96), (96, 96), {0: "patches"}),
        (PACKED, (1, 3, 14, 32 * 14), (1, 3, 14, 96 * 14), {3: "patches"}),
        (Pixels(3, 8), (1, 3, 8, 16), (1, 3, 24, 16), {2: "height", 3: "width"}),
        (PaddedPatches(48, POSITIONS, 4), (1, 32, 48), (1, 96, 48), {1: "patches"}),
    ],
)
def test_examples_of_two_sizes(
    inputs: ImageInputs, small: tuple[int, ...], large: tuple[int, ...], axes: dict[int, str]
) -> None:
    random = np.random.default_rng(0)
    assert inputs.example(random)[PIXELS].shape == small
    feeds = inputs.example(random, larger=True)
    assert feeds[PIXELS].shape == large
    assert set(inputs.names) <= feeds.keys()
    assert inputs.axes[PIXELS] == axes
    traced = inputs.tensors(torch.float16)
    assert [each.name for each in traced] == list(inputs.names)
    assert traced[0].example.dtype == torch.float16


@pytest.mark.parametrize(
    ("inputs", "name", "numbers"),
    [
        (FLAT, GRID, [[1, 8, 12]]),
        (PACKED, PATCH_SIZES, [[8, 12]]),
        (Pixels(3, 8), PIXEL_SIZES, [[16, 24]]),
        (PaddedPatches(48, MASKED_SIZES, 4), MASKED_SIZES, [[8, 12]]),
    ],
)
def test_the_size_of_an_image(inputs: ImageInputs, name: str, numbers: list[list[int]]) -> None:
    assert inputs.make(1, (2, 3))[name].tolist() == numbers


def test_patches_have_positions_or_a_mask() -> None:
    positions = PaddedPatches(48, POSITIONS, 4).make(1, (1, 2))[POSITIONS]
    assert positions.shape == (1, 32, 2)
    assert positions[0, 9].tolist() == [1, 1]  # column and row
    assert PaddedPatches(48, MASKED_SIZES, 4).make(1, (1, 2))[PATCH_MASK].sum() == 32


def test_images_in_two_sizes_with_a_mask_and_a_prompt() -> None:
    shapes = {PIXELS: (3, 8, 8), "high_res_pixel_values": (3, 16, 16)}
    inputs = FixedImages(shapes, outer=1, has_mask=True, text="ids")
    assert inputs.names == (PIXELS, "high_res_pixel_values", "ids")
    feeds = inputs.make(2, (1, 1))
    assert (feeds["high_res_pixel_values"].shape[-1], feeds["ids"].shape[0]) == (16, 2)
    assert feeds[PATCH_MASK].tolist() == [[True, True]]


@pytest.mark.parametrize("inputs", [FLAT, PACKED])
def test_a_graph_takes_patches_in_a_sequence(inputs: Patches) -> None:
    """It is traced with height and width, which it reads from the sizes when it runs."""
    pixels, sizes = (
        ir.Value(
            name=tensor.name,
            type=ir.TensorType(ir.DataType.from_numpy(tensor.example.numpy().dtype)),
            shape=ir.Shape([tensor.axes.get(i, n) for i, n in enumerate(tensor.example.shape)]),
        )
        for tensor in inputs.tensors(torch.float32)
    )
    node = ir.node("Identity", [pixels])
    node.outputs[0].name, node.outputs[0].type = "image", pixels.type
    graph = ir.Graph(
        [pixels, sizes], node.outputs, nodes=[node], opset_imports={"": 21}, name="encoder"
    )
    model = ir.Model(graph, ir_version=10)
    inputs.finish(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    assert [each.name for each in session.get_inputs()] == list(inputs.names)
    feeds: dict[str, Any] = {k: v.numpy() for k, v in inputs.make(1, (3, 2)).items()}
    (image,) = session.run(None, feeds)
    axis = len(inputs.before)
    assert image.shape[axis : axis + 2] == (12, 8)
    assert image.size == feeds[PIXELS].size
