"""The types of image processors: their algorithms, and defaults for settings that a file lacks.

Types, settings and defaults are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from edgetie.errors import BundleError
from edgetie.runtime.images.processing.patches import (
    masked_patches,
    merged_patches,
    placed_patches,
    repeated_patches,
)
from edgetie.runtime.images.processing.settings import ImageSettings
from edgetie.runtime.images.processing.steps import Pixels, ProcessedImage
from edgetie.runtime.images.processing.tiles import best_tiling, split_rows
from edgetie.runtime.images.processing.whole_images import (
    fit_page,
    keep_aspect_ratio,
    pad_to_square,
    resize_and_crop,
)

_LANCZOS, _BILINEAR, _BICUBIC = 1, 2, 3  # Pillow's numbers
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_STEPS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "default_to_square": True,
}
_SUFFIXES = ("Fast", "Pil")
_OLD_SUFFIX, _SUFFIX = "FeatureExtractor", "ImageProcessor"


class ProcessorType(NamedTuple):
    """An algorithm, and defaults of its settings."""

    algorithm: Callable[[Pixels, ImageSettings], ProcessedImage]
    defaults: dict[str, Any]


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_CROPPED = {
    **_CLIP,
    "resample": _BICUBIC,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": _square(224),
}
_SPLIT = {
    **_HALF,
    "resample": _LANCZOS,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,
}
_MERGED = {
    **_CLIP,
    "resample": _BICUBIC,
    "default_to_square": False,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_REPEATED = {**_MERGED, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}}
PROCESSOR_TYPES = {
    "BitImageProcessor": ProcessorType(resize_and_crop, _CROPPED),
    "BlipImageProcessor": ProcessorType(
        resize_and_crop, {**_CLIP, "resample": _BICUBIC, "size": _square(384)}
    ),
    "CLIPImageProcessor": ProcessorType(resize_and_crop, _CROPPED),
    "DeiTImageProcessor": ProcessorType(
        resize_and_crop,
        {
            **_HALF,
            "resample": _BICUBIC,
            "size": _square(256),
            "do_center_crop": True,
            "crop_size": _square(224),
        },
    ),
    "DonutImageProcessor": ProcessorType(
        fit_page,
        {
            **_HALF,
            "resample": _BILINEAR,
            "size": {"height": 2560, "width": 1920},
            "do_thumbnail": True,
            "do_pad": True,
        },
    ),
    "Gemma3ImageProcessor": ProcessorType(
        resize_and_crop, {**_HALF, "resample": _BILINEAR, "size": _square(224)}
    ),
    "Gemma4ImageProcessor": ProcessorType(
        placed_patches,
        {
            "image_mean": [0.0] * 3,
            "image_std": [1.0] * 3,
            "resample": _BICUBIC,
            "do_normalize": False,
            "patch_size": 16,
            "max_soft_tokens": 280,
            "pooling_kernel_size": 3,
        },
    ),
    "Glm46VImageProcessor": ProcessorType(repeated_patches, _REPEATED),
    "Glm4vImageProcessor": ProcessorType(repeated_patches, _REPEATED),
    "GotOcr2ImageProcessor": ProcessorType(
        best_tiling,
        {
            **_CLIP,
            "resample": _BICUBIC,
            "size": _square(384),
            "min_patches": 1,
            "max_patches": 12,
        },
    ),
    "Idefics3ImageProcessor": ProcessorType(split_rows, _SPLIT),
    "LlavaImageProcessor": ProcessorType(pad_to_square, _CROPPED),
    "PixtralImageProcessor": ProcessorType(
        keep_aspect_ratio,
        {
            **_CLIP,
            "resample": _BICUBIC,
            "size": {"longest_edge": 1024},
            "patch_size": _square(16),
        },
    ),
    "Qwen2VLImageProcessor": ProcessorType(
        merged_patches,
        {**_MERGED, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
    ),
    "SiglipImageProcessor": ProcessorType(
        resize_and_crop,
        {**_HALF, "resample": _BICUBIC, "size": _square(224), "default_to_square": False},
    ),
    "Siglip2ImageProcessor": ProcessorType(
        masked_patches,
        {**_HALF, "resample": _BILINEAR, "patch_size": 16, "max_num_patches": 256},
    ),
    "SmolVLMImageProcessor": ProcessorType(split_rows, _SPLIT),
    "ViTImageProcessor": ProcessorType(
        resize_and_crop, {**_HALF, "resample": _BILINEAR, "size": _square(224)}
    ),
}
"""By the name that ``image_processor_type`` has."""


def processor_type(settings: ImageSettings) -> ProcessorType:
    """Return the type that settings name.

    Raises:
        BundleError: if they name none, or one that is not implemented here.
    """
    names = ("image_processor_type", "feature_extractor_type")
    name = next((settings.values[each] for each in names if each in settings.values), None)
    if not isinstance(name, str):
        raise BundleError(
            f"{settings.path}: has no image_processor_type; copy the file again, or pass "
            "pixel_values from Python"
        )
    plain = name.replace(_OLD_SUFFIX, _SUFFIX)
    for suffix in _SUFFIXES:
        plain = plain.removesuffix(suffix)
    if plain not in PROCESSOR_TYPES:
        raise BundleError(
            f"{settings.path}: {name} is not implemented without transformers; compute its output "
            "with transformers and pass pixel_values from Python"
        )
    algorithm, defaults = PROCESSOR_TYPES[plain]
    return ProcessorType(algorithm, _STEPS | defaults)
