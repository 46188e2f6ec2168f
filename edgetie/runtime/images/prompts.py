"""What a prompt has in the place of an image: image tokens, and tokens around and between them.

The texts are those of transformers' processors, which are known by their class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetie.bundle.names import PIXEL_SIZES, PIXELS, POSITIONS
from edgetie.errors import BundleError, ImageError
from edgetie.runtime.images.processing.settings import ImageSettings, read_prompt_settings
from edgetie.runtime.images.processing.steps import ProcessedImage
from edgetie.runtime.text.tokenizer import read_special_tokens


@dataclass(frozen=True)
class PromptStyle:
    """How a processor writes images into prompts.

    Attributes:
        write: makes the text in the place of an image.
        placeholder: name of the token that stands for an image before.
        image: name of the token that embeddings replace.
        tokens: texts of tokens that the tokenizer need not name.
        overrides: gives the settings of the image processor that the processor's own replace.
        has_start_token: whether the prompt's first token is written too, after the images. A line
            feed follows the prompt then.
    """

    write: Callable[[ProcessedImage, Prompt], str]
    placeholder: str = "image_token"
    image: str = "image_token"
    tokens: Mapping[str, str] = field(default_factory=dict)
    overrides: Callable[[ImageSettings], dict[str, Any]] = lambda settings: {}
    has_start_token: bool = False


@dataclass(frozen=True)
class Prompt:
    """Writes images into prompts.

    Attributes:
        style: of the model's processor.
        settings: of the processor.
        image_settings: of its image processor.
        special_tokens: of the tokenizer, by name.
    """

    style: PromptStyle
    settings: ImageSettings
    image_settings: ImageSettings
    special_tokens: Mapping[str, str]

    @property
    def placeholder(self) -> str:
        """The token that stands for an image in a prompt."""
        return self.token(self.style.placeholder)

    def token(self, name: str) -> str:
        """Return the text of a token.

        Raises:
            BundleError: if no file names it.
        """
        text = self.special_tokens.get(name) or self.settings.values.get(name)
        text = text or self.style.tokens.get(name)
        if not isinstance(text, str):
            raise BundleError(
                f"{self.settings.path.parent}: tokenizer_config.json names no {name}; copy the "
                "model's files again, or write image tokens into the prompt yourself"
            )
        return text

    def describe(self, image: ProcessedImage) -> ProcessedImage:
        """Add the text of an image and its number of tokens."""
        text = self.style.write(image, self)
        return replace(image, text=text, tokens=text.count(self.token(self.style.image)))

    def expand(self, text: str, images: Sequence[ProcessedImage]) -> str:
        """Replace placeholders by the texts of images; see :class:`ImageProcessor`."""
        if self.style.has_start_token:
            text = self._with_start_token(text, len(images))
        parts = text.split(self.placeholder)
        if len(parts) - 1 != len(images):
            raise ImageError(
                f"the prompt has {self.placeholder} {len(parts) - 1} times for {len(images)} "
                "image(s); write it once for each image, and nowhere else"
            )
        texts = [image.text for image in images]
        return "".join(chain.from_iterable(zip_longest(parts, texts, fillvalue="")))

    def _with_start_token(self, text: str, count: int) -> str:
        if self.placeholder not in text:
            text = self.placeholder * count + text
        end = text.rfind(self.placeholder) + len(self.placeholder) if count else 0
        return f"{text[:end]}{self.token('bos_token')}{text[end:]}\n"


def read_prompt(directory: Path, image_settings: ImageSettings) -> Prompt | None:
    """Read how images are written into prompts; ``None`` if that is not known.

    Raises:
        BundleError: if a file is not a JSON object.
    """
    settings = read_prompt_settings(directory)
    style = STYLES.get(str(settings.values.get("processor_class")))
    if style is None:
        return None
    overridden = image_settings.overridden_by(style.overrides(settings))
    return Prompt(style, settings, overridden, read_special_tokens(directory))


def _feed(image: ProcessedImage, prompt: Prompt, name: str) -> NDArray[Any]:
    """Return an input of the encoder, which an image processor of another kind lacks."""
    if name not in image.feeds:
        raise BundleError(
            f"{prompt.settings.path}: its processor_class does not suit the image processor, which "
            f"computes no {name}; copy the model's files again"
        )
    return image.feeds[name]


def _of_patches(image: ProcessedImage, prompt: Prompt) -> str:
    """One token for each patch of the image, and for others of the encoder."""
    height, width = map(int, image.feeds[PIXELS].shape[-2:])
    side = prompt.settings.count("patch_size")
    extra = prompt.settings.count("num_additional_image_tokens", 0, least=0)
    if prompt.settings.values.get("vision_feature_select_strategy") == "default":
        extra -= 1
    return prompt.token("image_token") * (height // side * (width // side) + extra)


def _of_merged_patches(image: ProcessedImage, prompt: Prompt) -> str:
    """One token for each square of patches."""
    patches = len(image.feeds[PIXELS])
    return prompt.token("image_token") * (patches // prompt.image_settings.count("merge_size") ** 2)


def _of_lines(image: ProcessedImage, prompt: Prompt) -> str:
    """One token for each patch, a token after each line, and another one after the last."""
    height, width = _feed(image, prompt, PIXEL_SIZES)[0]
    sides = prompt.image_settings.height_width("patch_size")
    line = prompt.token("image_token") * (width // sides[1])
    lines = prompt.token("image_break_token").join([line] * (height // sides[0]))
    return lines + prompt.token("image_end_token")


def _of_fixed_length(image: ProcessedImage, prompt: Prompt) -> str:
    return prompt.token("image_token") * prompt.image_settings.count("image_seq_length")


def _in_paragraph(image: ProcessedImage, prompt: Prompt) -> str:
    """A fixed number of tokens between two others, in a paragraph of their own."""
    tokens = prompt.token("image_token") * prompt.settings.count("image_seq_length", 256)
    return f"\n\n{prompt.token('boi_token')}{tokens}{prompt.token('eoi_token')}\n\n"


def _of_pools(image: ProcessedImage, prompt: Prompt) -> str:
    """One token for each pooled square of patches, between two others."""
    patches = np.count_nonzero(_feed(image, prompt, POSITIONS)[0, :, 0] >= 0)
    count = int(patches) // prompt.image_settings.count("pooling_kernel_size") ** 2
    tokens = prompt.token("image_token") * count
    return f"{prompt.token('boi_token')}{tokens}{prompt.token('eoi_token')}"


def _of_tiles(image: ProcessedImage, prompt: Prompt) -> str:
    """A fixed number of tokens for each tile, all of them between two others."""
    count = prompt.settings.count("image_seq_length", 256) * len(image.feeds[PIXELS])
    tokens = prompt.token("context_image_token") * count
    return f"{prompt.token('start_image_token')}{tokens}{prompt.token('end_image_token')}"


def _of_numbered_tiles(image: ProcessedImage, prompt: Prompt) -> str:
    """As many tokens for each tile as it has patches, after a token or text for its number."""
    side = prompt.settings.count("patch_size", 28) * prompt.settings.count("downsample_factor", 1)
    count = (prompt.settings.count("img_size", 364) // side) ** 2
    tokens, tile = prompt.token("img_patch_token") * count, prompt.token("tile_token")
    numbers = range(1, len(image.feeds[PIXELS]))
    tiles = "".join(f"{tile}_{number}{tokens}" for number in numbers)
    start, end = prompt.token("start_of_img_token"), prompt.token("end_of_img_token")
    return f"{start}{tiles}{prompt.token('tile_global_token')}{tokens}{end}"


def _of_placed_tiles(image: ProcessedImage, prompt: Prompt) -> str:
    """A fixed number of tokens for each tile, after tokens for its place."""
    around = prompt.token("fake_image_token")
    tokens = prompt.token("image_token") * prompt.settings.count("image_seq_len", 169)
    rows = (
        "".join(f"{around}<row_{row}_col_{column}>{tokens}" for column in _ordinals(image.columns))
        for row in _ordinals(image.rows)
    )
    split = "".join(f"{row}\n" for row in rows) + "\n" if image.rows else ""
    return f"{split}{around}{prompt.token('global_image_token')}{tokens}{around}"


def _ordinals(count: int) -> range:
    return range(1, count + 1)


def _merged_patch_size(settings: ImageSettings) -> dict[str, Any]:
    side = settings.count("patch_size", 16) * settings.count("spatial_merge_size", 1)
    return {"patch_size": side}


_MERGED = PromptStyle(_of_merged_patches, tokens={"image_token": "<|image_pad|>"})
_PLACED = PromptStyle(
    _of_placed_tiles,
    tokens={
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    },
)
_REPEATED = PromptStyle(_of_merged_patches, tokens={"image_token": "<|image|>"})
STYLES = {
    "AyaVisionProcessor": PromptStyle(
        _of_numbered_tiles,
        image="img_patch_token",
        tokens={
            "image_token": "<image>",
            "img_patch_token": "<|IMG_PATCH|>",
            "start_of_img_token": "<|START_OF_IMG|>",
            "end_of_img_token": "<|END_OF_IMG|>",
            "tile_token": "TILE",
            "tile_global_token": "TILE_GLOBAL",
        },
        overrides=lambda settings: {"crop_to_patches": True},
    ),
    "Gemma3Processor": PromptStyle(
        _in_paragraph,
        placeholder="boi_token",
        overrides=lambda settings: {"do_pan_and_scan": False},
    ),
    "Gemma3nProcessor": PromptStyle(_in_paragraph),
    "Gemma4Processor": PromptStyle(_of_pools),
    "Glm46VProcessor": _REPEATED,
    "Glm4vProcessor": _REPEATED,
    "Idefics3Processor": _PLACED,
    "InternVLProcessor": PromptStyle(
        _of_tiles,
        placeholder="context_image_token",
        image="context_image_token",
        overrides=lambda settings: {"crop_to_patches": True},
    ),
    "LlavaProcessor": PromptStyle(_of_patches, tokens={"image_token": "<image>"}),
    "PaliGemmaProcessor": PromptStyle(
        _of_fixed_length, tokens={"image_token": "<image>"}, has_start_token=True
    ),
    "PixtralProcessor": PromptStyle(
        _of_lines,
        tokens={
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
        overrides=_merged_patch_size,
    ),
    "Qwen2VLProcessor": _MERGED,
    "Qwen2_5_VLProcessor": _MERGED,
    "Qwen3VLProcessor": _MERGED,
    "SmolVLMProcessor": _PLACED,
}
"""By the name that ``processor_class`` has."""
