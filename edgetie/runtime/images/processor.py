"""From an image to the encoder's inputs and the text that stands for it in a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import PREPROCESSOR, PROCESSOR
from edgetie.errors import BundleError, ImageError
from edgetie.graph.tensors import TensorInfo
from edgetie.runtime.images.processing.processor_types import ProcessorType, processor_type
from edgetie.runtime.images.processing.settings import ImageSettings, read_image_settings
from edgetie.runtime.images.processing.steps import ProcessedImage
from edgetie.runtime.images.prompts import Prompt, read_prompt
from edgetie.runtime.images.reading import ImageSource, read_image, require_pillow


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into an encoder's inputs, as transformers does with Pillow.

    Attributes:
        settings: of the image processor, with the defaults of its type.
        type: its algorithm.
        prompt: writes images into prompts; ``None`` if the model's prompts have no places for
            images, or these are not known.
        inputs: of the encoder; empty if they are not known.
    """

    settings: ImageSettings
    type: ProcessorType
    prompt: Prompt | None = None
    inputs: tuple[TensorInfo, ...] = ()

    @staticmethod
    def from_bundle(source: Bundle | str | os.PathLike[str]) -> ImageProcessor:
        """Read the settings of a bundle, or of any directory with a model's files.

        Settings are in ``processor_config.json`` or ``preprocessor_config.json``. Prompts depend
        on ``tokenizer_config.json`` too.

        Raises:
            BundleError: if there are no settings, they are damaged, or of a processor that is not
                implemented here.
            ImageError: if Pillow is not installed.
        """
        require_pillow()
        inputs: tuple[TensorInfo, ...] = ()
        if isinstance(source, Bundle):
            for name in (PROCESSOR, PREPROCESSOR):
                source.verify_file(name)
            directory, encoder = source.directory, source.manifest.encoder
            inputs = tuple(encoder.inputs) if encoder else ()
        else:
            directory = Path(source)
        settings = read_image_settings(directory)
        kind = processor_type(settings)
        settings = settings.defaulting_to(kind.defaults)
        prompt = read_prompt(directory, settings)
        return ImageProcessor(prompt.image_settings if prompt else settings, kind, prompt, inputs)

    def __call__(self, image: ImageSource) -> ProcessedImage:
        """Read an image and compute the encoder's inputs.

        Args:
            image: as :func:`edgetie.read_image` takes it.

        Raises:
            ImageError: if it cannot be read, or has a shape that the model does not accept.
            BundleError: if a setting is wrong, or the encoder reads something else.
        """
        processed = self.type.algorithm(read_image(image), self.settings)
        if self.prompt is not None:
            processed = self.prompt.describe(processed)
        return replace(processed, feeds=self._for_encoder(processed.feeds))

    @property
    def adds_start_token(self) -> bool:
        """Whether :meth:`expand_prompt` adds the prompt's first token."""
        return self.prompt is not None and self.prompt.style.has_start_token

    def expand_prompt(self, text: str, images: Sequence[ProcessedImage]) -> str:
        """Replace the placeholders of images in a prompt.

        Args:
            text: a prompt, as a chat template renders it, with one placeholder for each image.
            images: in the order of the placeholders.

        Returns:
            The prompt to encode, without special tokens if ``text`` is a rendered chat or
            :attr:`adds_start_token`.

        Raises:
            ImageError: if the prompt has another number of placeholders than images.
            BundleError: if it is not known how the model's prompts have images.
        """
        if self.prompt is None:
            raise BundleError(
                f"{self.settings.path.parent}: its processor_class is not one whose prompts are "
                "known here; write the image tokens into the prompt yourself"
            )
        return self.prompt.expand(text, images)

    def _for_encoder(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Keep what the encoder reads, in its data types."""
        if not self.inputs:
            return dict(feeds)
        missing = [info.name for info in self.inputs if info.name not in feeds]
        if missing:
            raise BundleError(
                f"{self.settings.path}: the encoder reads {', '.join(missing)}, which this image "
                "processor does not compute; compute it with transformers and run the encoder from "
                "Python"
            )
        for info in self.inputs:
            shape = feeds[info.name].shape
            if not _suits(shape, info.shape):
                raise ImageError(
                    f"{info.name} of this image is {list(shape)}, but the encoder reads "
                    f"{list(info.shape)}; crop the image, or repair {self.settings.path}"
                )
        return {info.name: feeds[info.name].astype(info.numpy_dtype) for info in self.inputs}


def _suits(shape: tuple[int, ...], expected: Sequence[int | str]) -> bool:
    return len(shape) == len(expected) and all(
        size == wanted or not isinstance(wanted, int)
        for size, wanted in zip(shape, expected, strict=True)
    )
