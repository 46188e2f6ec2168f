"""Answer a prompt about images, as a stream of text."""

from collections.abc import Iterator, Sequence

import numpy as np

from edgetie.bundle.names import IMAGE_LM, IMAGE_TO_TEXT
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.constraint import Constraint, require_one_end
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import (
    GREEDY,
    continue_prompt,
    generate_from_images,
    require_limits,
)
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.text_generation import Chunk, stream_text
from edgetie.runtime.images.embeddings import embed_images
from edgetie.runtime.images.processing.steps import ProcessedImage
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.images.reading import ImageSource
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import Tokenizer


def answer_about_images(
    session: Session,
    tokenizer: Tokenizer,
    images: Sequence[ImageSource],
    prompt: str | None = None,
    *,
    system: str | None = None,
    chat: bool = True,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_strings: Sequence[str] = (),
    constraint: Constraint | None = None,
    seed: int | None = None,
) -> Iterator[Chunk]:
    """Answer a prompt about images and stream the text.

    Args:
        session: an opened ``image-text-to-text`` or ``image-to-text`` model.
        tokenizer: of the same model.
        images: one or several, as :func:`edgetie.read_image` takes them. A model for
            ``image-to-text`` reads one.
        prompt: what to answer. A model for ``image-to-text`` needs none: with one, its text starts
            with it.
        system: a system message before it.
        chat: make a chat of the prompt, images first, if the model has a chat template. Otherwise
            the prompt has a placeholder for each image, or the images come first.
        max_new_tokens, sampling, stop_strings, constraint, seed: as in
            :func:`edgetie.generate_text`.

    Raises:
        ImageError: if an image cannot be read, or the prompt has no place for it.
        BundleError: if the model reads no images, or ONNX Runtime fails on it.
        ConstraintError: if the constraint cannot be met.
        EdgetieError: if the prompt is missing or too long, or a number is too small.
    """
    require_limits(max_new_tokens, seed)
    require_one_end(stop_strings, constraint)
    task, path = session.bundle.task, session.bundle.directory
    if task not in (IMAGE_LM, IMAGE_TO_TEXT):
        raise BundleError(f"{path}: a bundle for {task}, which reads no images")
    process = ImageProcessor.from_bundle(session.bundle)
    processed = [process(image) for image in images]
    if task == IMAGE_TO_TEXT:
        start = _start(session, tokenizer, processed, prompt)
        steps = generate_from_images(
            session,
            processed[0].feeds,
            start=start,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            constraint=constraint,
            seed=seed,
        )
        yield from stream_text(steps, tokenizer, [len(start)], stop_strings)
        return
    if prompt is None:
        raise EdgetieError(f"{path}: answers a prompt about images; give one", parameter="prompt")
    ids = _encode(process, tokenizer, processed, prompt, system, chat)
    decoder = Decoder(session, 1, len(ids) + max_new_tokens)
    embeddings = embed_images(session, [image.feeds for image in processed])
    logits = decoder.prefill(np.array([ids], np.int64), image_embeddings=embeddings)
    answer = continue_prompt(
        decoder, logits, max_new_tokens, sampling, seed, [ids], constraint=constraint
    )
    yield from stream_text(answer, tokenizer, [len(ids)], stop_strings)


def _start(
    session: Session,
    tokenizer: Tokenizer,
    images: Sequence[ProcessedImage],
    prompt: str | None,
) -> list[int]:
    """Make the first tokens of the text of one image."""
    path = session.bundle.directory
    if len(images) != 1:
        raise EdgetieError(f"{path}: reads one image, not {len(images)}", parameter="images")
    start = list(session.bundle.manifest.signature.start_token_ids)
    if prompt is not None:
        start += tokenizer.encode(prompt, add_special_tokens=False)
    return start


def _encode(
    process: ImageProcessor,
    tokenizer: Tokenizer,
    images: Sequence[ProcessedImage],
    prompt: str,
    system: str | None,
    chat: bool,
) -> list[int]:
    """Make the tokens of a prompt, with as many image tokens as the images have."""
    is_chat = chat and tokenizer.chat_template is not None
    if is_chat:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        text = tokenizer.apply_chat_template(messages)
    else:
        text = prompt if system is None else f"{system}\n{prompt}"
        placeholder = process.prompt.placeholder if process.prompt else ""
        if placeholder and placeholder not in text and not process.adds_start_token:
            text = placeholder * len(images) + text
    text = process.expand_prompt(text, images)
    return tokenizer.encode(text, add_special_tokens=not (is_chat or process.adds_start_token))
