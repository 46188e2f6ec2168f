"""Write an image processor as a graph: from the pixels of an image to what the encoder reads.

Each function here is the graph of one in :mod:`edgetie.runtime.images.processing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgetie.bundle.names import GRID, PIXELS
from edgetie.deploy.images.arithmetic import Number, concatenate
from edgetie.deploy.images.canvas import Canvas, Size
from edgetie.errors import BundleError
from edgetie.graph.nodes import Nodes
from edgetie.runtime.images.processing import patches, tiles, whole_images
from edgetie.runtime.images.processing.patches import pixel_limits, token_side
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import Pixels, ProcessedImage
from edgetie.runtime.images.processor import ImageProcessor

IMAGE = "image"
"""Input of the graph: RGB, ``(height, width, 3)``, uint8."""

Algorithm: TypeAlias = Callable[[Pixels, ImageSettings], ProcessedImage]
Outputs: TypeAlias = "dict[str, ir.Value]"

_OPSET, _IR_VERSION = 18, 8  # the oldest with all its operators, for old versions of ONNX Runtime
_RUN_IT = "run the model with edgetie generate"


def processor_graph(process: ImageProcessor) -> ir.Model:
    """Write a processor's graph, whose outputs are the encoder's inputs by name.

    Pixel values are those of the processor to one of 256 levels.

    Raises:
        BundleError: if a graph cannot express the processor; it names the setting.
    """
    image = ir.Value(
        name=IMAGE, shape=ir.Shape(["height", "width", 3]), type=ir.TensorType(ir.DataType.UINT8)
    )
    graph = ir.Graph([image], [], nodes=[], opset_imports={"": _OPSET}, name="image_processor")
    nodes = Nodes(graph)
    algorithm = process.type.algorithm
    if algorithm not in _GRAPHS:
        raise BundleError(
            f"{process.settings.path}: image_processor_type is one that starters do not have; "
            f"{_RUN_IT}"
        )
    outputs = _GRAPHS[algorithm](_open(nodes, image), process.settings)
    for info in process.inputs:
        if info.name not in outputs:
            raise BundleError(
                f"{process.settings.path}: the encoder reads {info.name}, which the starters' "
                f"image processor does not compute; {_RUN_IT}"
            )
        dtype = ir.DataType.from_numpy(np.dtype(info.numpy_dtype))
        output = nodes("Cast", outputs[info.name], to=dtype)
        output.name, output.shape = info.name, ir.Shape(info.shape)
        graph.outputs.append(output)
    graph.extend(nodes.nodes)
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgetie")


def _open(nodes: Nodes, image: ir.Value) -> Canvas:
    shape = nodes("Shape", image)
    height, width = (
        Number(nodes, nodes("Gather", shape, nodes.integers(f"scalar.{axis}", axis)))
        for axis in range(2)
    )
    pixels = nodes.cast(nodes("Transpose", image, perm=[2, 0, 1]), ir.DataType.FLOAT)
    return Canvas(nodes, pixels, height, width)


def _resize_and_crop(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("do_resize"):
        canvas = canvas.resize(_standard_size(canvas, settings), settings)
    if settings.flag("do_center_crop"):
        canvas = canvas.crop(settings.height_width("crop_size"))
    canvas = canvas.normalize(settings)
    if settings.flag("do_pad") and "pad_size" in settings.values:
        canvas = canvas.extend(settings.height_width("pad_size"))
    return {PIXELS: _batch(canvas)}


def _pad_to_square(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("do_pad"):
        mean = settings.channels("image_mean").astype(np.float64) * 255
        colour = [int(value) for value in mean.astype(np.uint8)]
        canvas = canvas.place((canvas.longer, canvas.longer), colour)
    return _resize_and_crop(canvas, settings.overridden_by({"do_pad": False}))


def _fit_page(canvas: Canvas, settings: ImageSettings) -> Outputs:
    height, width = settings.height_width("size", ("width", "height"))
    if settings.flag("do_align_long_axis"):
        raise BundleError(
            f"{settings.path}: do_align_long_axis rotates images, which starters do not; {_RUN_IT}"
        )
    if settings.flag("do_resize"):
        canvas = canvas.resize(_shortest_edge_size(canvas, min(height, width)), settings)
    if settings.flag("do_thumbnail"):
        canvas = canvas.resize(_shrunk_size(canvas, height, width), settings)
    if settings.flag("do_pad"):
        canvas = canvas.place((height, width))
    if settings.flag("do_center_crop"):
        canvas = canvas.crop(settings.height_width("crop_size"))
    return {PIXELS: _batch(canvas.normalize(settings))}


def _shrunk_size(canvas: Canvas, most_rows: int, most_columns: int) -> Size:
    height, width = canvas.height.minimum(most_rows), canvas.width.minimum(most_columns)
    is_tall, is_wide = canvas.height > canvas.width, canvas.width > canvas.height
    return (
        is_wide.select(canvas.height * width // canvas.width, height),
        is_tall.select(canvas.width * height // canvas.height, width),
    )


def _merged_patches(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("do_resize"):
        canvas = canvas.resize(
            _pixel_limited_size(canvas.height, canvas.width, settings, 1), settings
        )
    return _merge_patches(canvas, settings)


def _repeated_patches(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("do_resize"):
        scale = (token_side(settings) / canvas.shorter).maximum(1.0)
        height, width = ((side * scale).truncate() for side in (canvas.height, canvas.width))
        times = settings.count("temporal_patch_size")
        canvas = canvas.resize(_pixel_limited_size(height, width, settings, times), settings)
    return _merge_patches(canvas, settings)


def _merge_patches(canvas: Canvas, settings: ImageSettings) -> Outputs:
    nodes, side, merge = canvas.nodes, settings.count("patch_size"), settings.count("merge_size")
    times = settings.count("temporal_patch_size")
    canvas = canvas.normalize(settings)
    rows, columns = canvas.height // side, canvas.width // side
    split = concatenate(nodes, 3, rows // merge, merge, side, columns // merge, merge, side)
    parts = nodes("Reshape", canvas.pixels, split)
    parts = nodes("Transpose", parts, perm=[1, 4, 2, 5, 0, 3, 6])
    parts = nodes("Concat", *[nodes.along("Unsqueeze", parts, 5)] * times, axis=5)
    shape = concatenate(nodes, rows * columns, 3 * times * side**2)
    grid = nodes.along("Unsqueeze", concatenate(nodes, 1, rows, columns), 0)
    return {PIXELS: nodes("Reshape", parts, shape), GRID: grid}


def _pixel_limited_size(height: Number, width: Number, settings: ImageSettings, times: int) -> Size:
    multiple = token_side(settings)
    least, most = pixel_limits(settings)
    rounded = tuple((side / multiple).round() * multiple for side in (height, width))
    count = rounded[0] * rounded[1] * times
    pixels = height * times * width
    shrink = (pixels / most).map("Sqrt")
    enlarge = (least / pixels).map("Sqrt")
    sizes = []
    for side, new in zip((height, width), rounded, strict=True):
        smaller = ((side / shrink / multiple).floor() * multiple).maximum(multiple)
        larger = (side * enlarge / multiple).ceil() * multiple
        is_large, is_small = count > most, count < least
        sizes.append(is_large.select(smaller, is_small.select(larger, new)))
    return sizes[0], sizes[1]


def _one_tile(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("crop_to_patches") and settings.count("max_patches") > 1:
        raise _tiles_error(settings, "crop_to_patches")
    if settings.flag("do_resize"):
        canvas = canvas.resize(settings.height_width("size"), settings)
    return {PIXELS: _batch(canvas.normalize(settings))}


def _one_square(canvas: Canvas, settings: ImageSettings) -> Outputs:
    if settings.flag("do_image_splitting"):
        raise _tiles_error(settings, "do_image_splitting")
    side = max(settings.size("max_image_size").values())
    if settings.flag("do_resize"):
        canvas = canvas.resize(_longest_edge_size(canvas, settings), settings)
    nodes = canvas.nodes
    pixels = _batch(canvas.resize((side, side), settings).normalize(settings))
    outputs = {PIXELS: nodes.along("Unsqueeze", pixels, 0)}
    if settings.flag("do_pad"):
        ones = np.ones((1, 1, side, side), np.int64)
        outputs["pixel_attention_mask"] = nodes.constant("ones", ones, np.int64)
    return outputs


def _tiles_error(settings: ImageSettings, name: str) -> BundleError:
    return BundleError(
        f"{settings.path}: {name} splits images into tiles, which starters do not; set it to false "
        "in the model's own file and export again"
    )


def _standard_size(canvas: Canvas, settings: ImageSettings) -> Size:
    is_square = settings.flag("default_to_square")
    sides = settings.size("size", integer=("height", "width") if is_square else ("shortest_edge",))
    if {"shortest_edge", "longest_edge"} <= sides.keys():
        return _limited_size(canvas, sides["shortest_edge"], sides["longest_edge"])
    if "shortest_edge" in sides:
        return _shortest_edge_size(canvas, sides["shortest_edge"])
    if {"max_height", "max_width"} <= sides.keys():
        scale = (sides["max_height"] / canvas.height).minimum(sides["max_width"] / canvas.width)
        return (canvas.height * scale).truncate(), (canvas.width * scale).truncate()
    return settings.height_width("size")


def _shortest_edge_size(canvas: Canvas, edge: int) -> Size:
    long = canvas.longer * edge // canvas.shorter
    is_tall = canvas.height > canvas.width
    return is_tall.select(long, edge), is_tall.select(edge, long)


def _limited_size(canvas: Canvas, shortest: int, longest: int) -> Size:
    is_long = canvas.longer / canvas.shorter * shortest > longest
    limited = canvas.shorter * longest / canvas.longer
    short = limited.minimum(float(shortest))  # is_long says the same
    short_side = is_long.select(limited.round(), shortest)
    is_same, is_tall = short_side.equals(canvas.shorter), canvas.height > canvas.width
    height = is_tall.select((short * canvas.height / canvas.width).truncate(), short_side)
    width = is_tall.select(short_side, (short * canvas.width / canvas.height).truncate())
    return is_same.select(canvas.height, height), is_same.select(canvas.width, width)


def _longest_edge_size(canvas: Canvas, settings: ImageSettings) -> Size:
    sides = settings.size("size")
    if "longest_edge" not in sides:
        return settings.height_width("size")
    height, width = _scale(canvas.height, canvas.width, sides["longest_edge"])
    is_tall = height > width
    height, width = (
        is_tall.select(height, height + height % 2),
        is_tall.select(width + width % 2, width),
    )
    is_large = height.maximum(width) > tiles.LONGEST
    smaller = _scale(height, width, tiles.LONGEST)
    height, width = is_large.select(smaller[0], height), is_large.select(smaller[1], width)
    return height.maximum(1), width.maximum(1)


def _scale(height: Number, width: Number, longest: int) -> tuple[Number, Number]:
    ratio, is_tall = width / height, height > width
    return (
        is_tall.select(longest, (longest / ratio).truncate()),
        is_tall.select((ratio * longest).truncate(), longest),
    )


def _batch(canvas: Canvas) -> ir.Value:
    return canvas.nodes.along("Unsqueeze", canvas.pixels, 0)


_GRAPHS: dict[Algorithm, Callable[[Canvas, ImageSettings], Outputs]] = {
    whole_images.resize_and_crop: _resize_and_crop,
    whole_images.pad_to_square: _pad_to_square,
    whole_images.fit_page: _fit_page,
    patches.merged_patches: _merged_patches,
    patches.repeated_patches: _repeated_patches,
    tiles.best_tiling: _one_tile,
    tiles.split_rows: _one_square,
}
