"""Images in a graph are resized as Pillow does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from image_cases import drawn
from PIL import Image

from edgetie.deploy.images.arithmetic import Number
from edgetie.deploy.images.canvas import Canvas
from edgetie.graph.nodes import Nodes
from edgetie.runtime.images.processing.settings import ImageSettings


@pytest.mark.parametrize("resample", [1, 2, 3])
def test_resized_levels_are_those_of_pillow(resample: int) -> None:
    sides = ("height", "width", "new_height", "new_width")
    kinds = {"pixels": ([3, "h", "w"], ir.DataType.FLOAT)} | dict.fromkeys(
        sides, ([], ir.DataType.INT64)
    )
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        for name, (shape, dtype) in kinds.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": 18})
    nodes = Nodes(graph)
    height, width, *size = (Number(nodes, value) for value in values[1:])
    settings = ImageSettings(Path("settings.json"), {"resample": resample})
    resized = Canvas(nodes, values[0], height, width).resize((size[0], size[1]), settings)
    graph.extend(nodes.nodes)
    graph.outputs.append(resized.pixels)
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for old, new in (((60, 107), (30, 200)), ((427, 240), (99, 101)), ((3, 2), (64, 5)),
                     ((64, 64), (64, 64)), ((300, 9), (1, 1)), ((50, 80), (120, 13))):  # fmt: skip
        image = drawn(*old)
        arrays = {name: np.array(side) for name, side in zip(sides, (*old, *new), strict=True)}
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
        (found,) = session.run(None, {"pixels": pixels, **arrays})
        # two calls: versions of Pillow differ in which axis comes first
        filter_ = Image.Resampling(resample)
        expected = image.resize((new[1], old[0]), filter_).resize((new[1], new[0]), filter_)
        difference = np.abs(found.transpose(1, 2, 0) - np.asarray(expected))
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.97
