"""The settings of a starter that reads images: its graphs, and the texts around images."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import ENCODER, IMAGE, IMAGE_TO_TEXT
from edgetie.deploy.chat_format import ChatFormat
from edgetie.errors import BundleError
from edgetie.graph.tensors import PAST
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.text.chat import PLACEHOLDER
from edgetie.runtime.text.tokenizer import Tokenizer

PROCESSOR_GRAPH = "image_processor.onnx"

_ANSWER = "\ue001"
_SIZES = ((90, 120), (200, 80))  # heights and widths of images whose texts are compared
_RUN_IT = "run it with edgetie generate"


def image_settings(
    bundle: Bundle, process: ImageProcessor, tokenizer: Tokenizer, chat: ChatFormat
) -> dict[str, Any]:
    """Compose what ``app.json`` contains about images.

    ``outputs`` of the encoder are ``feeds`` of the decoder. An image is ``required`` if there is no
    token for it in a prompt.

    Raises:
        BundleError: if prompts have images in a way that starters do not write.
    """
    encoder, decoder = bundle.manifest.encoder, bundle.manifest.signature
    assert encoder is not None
    is_reader = bundle.task == IMAGE_TO_TEXT
    feeds = [v.name for v in decoder.inputs if is_image_feed(v.name)]
    positions = next((v for v in decoder.inputs if v.name == "position_ids"), None)
    settings = {
        "processor": f"model/{PROCESSOR_GRAPH}",
        "encoder": f"model/{ENCODER}",
        "inputs": [value.name for value in encoder.inputs],
        "outputs": [name.replace(PAST, "present") for name in feeds],
        "feeds": feeds,
        "required": is_reader,
        "position_axes": len(positions.shape) - 1 if positions is not None else 1,
    }
    if is_reader:
        return settings
    return settings | {
        "size": encoder.outputs[0].shape[-1],
        "token_id": decoder.image_token_id,
        **_texts(bundle, process, tokenizer, chat),
    }


def is_image_feed(name: str) -> bool:
    """Whether an input of a decoder is an output of an image encoder."""
    return name.startswith(IMAGE) or (name.startswith(f"{PAST}.") and ".encoder." in name)


def _texts(
    bundle: Bundle, process: ImageProcessor, tokenizer: Tokenizer, chat: ChatFormat
) -> dict[str, Any]:
    """The image token, and the texts before an image's tokens and from there to the prompt."""
    if process.prompt is None:
        raise BundleError(
            f"{process.settings.path.parent}: its processor_class is not one whose prompts are "
            "known here, so starters cannot write images into them"
        )
    style = process.prompt.style
    token, placeholder = process.prompt.token(style.image), process.prompt.placeholder
    before, after = _around(process, token)

    def pair(text: str) -> list[str]:
        head, tail = text.split(placeholder)
        return [head + before, after + tail]

    def text_before_prompt(rendered: str) -> str:
        before_prompt, *rest = rendered.split(PLACEHOLDER)
        if rest != [chat.after_prompt] or before_prompt.count(placeholder) != 1:
            raise BundleError(
                f"{bundle.directory}: its chat template does not write an image once before the "
                f"prompt, which starters rely on; {_RUN_IT}"
            )
        return before_prompt

    if tokenizer.chat_template is None:
        start = process.prompt.token("bos_token") if process.adds_start_token else ""
        return {"token": token, "before_prompt": [before, after + start], "next_prompt": None}
    asked = _message("user", PLACEHOLDER, image=True)
    first = text_before_prompt(tokenizer.apply_chat_template([asked]))
    settings: dict[str, Any] = {
        "token": token,
        "before_prompt": pair(first),
        "next_prompt": None,
    }
    if chat.next_prompt is not None:
        second = [_message("user", PLACEHOLDER), _message("assistant", _ANSWER), asked]
        *_, last = tokenizer.apply_chat_template(second).split(_ANSWER)
        settings["next_prompt"] = pair(text_before_prompt(last))
    return settings


def _around(process: ImageProcessor, token: str) -> tuple[str, str]:
    """The texts before an image's tokens and after them, the same for images of all sizes."""
    texts = set()
    for size in _SIZES:
        image = process(np.zeros((*size, 3), np.uint8))
        before, _, rest = image.text.partition(token)
        after = rest.removeprefix(token * (image.tokens - 1))
        if token in after:
            raise BundleError(
                f"{process.settings.path.parent}: its processor_class writes other tokens between "
                f"those of an image, which starters do not; {_RUN_IT}"
            )
        texts.add((before, after))
    (only,) = texts
    return only


def _message(role: str, text: str, *, image: bool = False) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}]
    return {"role": role, "content": [{"type": "image"}, *parts] if image else parts}
