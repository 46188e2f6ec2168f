"""Write the settings of an image processor as onnxruntime-genai reads them.

Its operators are those of onnxruntime-extensions, which resizes as Pillow does.
"""

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.names import GENAI_PROCESSOR
from edgetie.errors import BundleError
from edgetie.runtime.images.processing.patches import merged_patches, pixel_limits
from edgetie.runtime.images.processing.processor_types import processor_type
from edgetie.runtime.images.processing.settings import ImageSettings, read_image_settings
from edgetie.runtime.images.processing.whole_images import resize_and_crop

_FILTERS = {0: "NEAREST", 1: "LANCZOS", 2: "LINEAR", 3: "CUBIC"}  # by Pillow's numbers


def write_genai_processor(directory: Path) -> bool:
    """Write the file, if there are settings and they are of a processor that can be expressed.

    Returns:
        Whether it was written.
    """
    try:
        settings = read_image_settings(directory)
        kind = processor_type(settings)
        steps = _steps(kind.algorithm, settings.defaulting_to(kind.defaults))
    except BundleError:  # `edgetie generate --image` names what is wrong
        return False
    if steps is None:
        return False
    data = {"processor": {"name": "edgetie", "transforms": steps}}
    (directory / GENAI_PROCESSOR).write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return True


def _steps(algorithm: Any, settings: ImageSettings) -> list[dict[str, Any]] | None:
    has_steps = all(settings.flag(f"do_{name}") for name in ("resize", "rescale", "normalize"))
    others = settings.flag("do_center_crop") or settings.flag("do_pad")
    resample = settings.resample()
    if not has_steps or others or resample not in _FILTERS:
        return None
    decode = _step("DecodeImage", color_space="RGB")
    rescale = _step("Rescale", rescale_factor=settings.number("rescale_factor"))
    mean, deviation = (settings.channels(f"image_{name}").tolist() for name in ("mean", "std"))
    if algorithm is merged_patches:
        sides = {name: settings.count(name) for name in ("patch_size", "merge_size")}
        least, most = pixel_limits(settings)
        limits = {"smart_resize": 1, "min_pixels": least, "max_pixels": most, **sides}
        side = sides["patch_size"] * sides["merge_size"]
        times = settings.count("temporal_patch_size")
        return [
            decode,
            _step("ConvertRGB"),  # to the order of colours that the next flag needs
            _resize((side, side), resample, **limits),
            rescale,
            _step("Normalize", mean=mean, std=deviation, qwen2_5_vl=1),
            _step("PatchImage", temporal_patch_size=times, **sides),
        ]
    if algorithm is not resize_and_crop:
        return None
    return [
        decode,
        _resize(settings.height_width("size"), resample, smart_resize=0),
        rescale,
        _step("Normalize", mean=mean, std=deviation),
        _step("Permute3D", dims=[2, 0, 1]),
    ]


def _step(kind: str, **settings: Any) -> dict[str, Any]:
    return {"operation": {"name": kind.lower(), "type": kind, "attrs": settings}}


def _resize(size: tuple[int, int], resample: int, **settings: int) -> dict[str, Any]:
    height, width = size
    return _step("Resize", height=height, width=width, interpolation=_FILTERS[resample], **settings)
