"""Image embeddings in the places of a prompt, in the runtime."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import image_models
import numpy as np
import pytest
import torch

from edgetie.bundle.names import PIXELS
from edgetie.errors import BundleError, EdgetieError
from edgetie.export.tasks.image_lm import ImageTask, trial_run
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.images.embeddings import embed_images, prepend_images, random_image
from edgetie.runtime.session import Session, open_session

NEW = 6


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "gemma3"])
def opened(
    request: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ImageTask, Session]:
    model = image_models.build(getattr(image_models, request.param)())
    task = trial_run(model, model.config)
    directory = tmp_path_factory.mktemp("bundle") / "fp32"
    image_models.export(model, directory)
    return model, task, open_session(directory)


def draw(task: ImageTask) -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    return [
        {name: value.numpy() for name, value in task.image.example(random, larger=larger).items()}
        for larger in (False, True)
    ]


def torch_tokens(model: Any, ids: np.ndarray[Any, Any], images: list[dict[str, Any]]) -> list[int]:
    """The likeliest tokens, the whole sequence read again for each."""
    feeds = {name: np.concatenate([each[name] for each in images]) for name in images[0]}
    tokens = ids
    parameters = inspect.signature(model.forward).parameters
    types = [name for name in ("token_type_ids", "mm_token_type_ids") if name in parameters]
    for _ in range(NEW):
        kwargs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        kwargs |= dict.fromkeys(types, torch.from_numpy(tokens == image_models.TOKEN).long())
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(tokens), **kwargs).logits[0, -1]
        tokens = np.append(tokens, [[int(logits.argmax())]], axis=1)
    return list(tokens[0, ids.shape[1] :])


def test_tokens_are_those_of_torch_with_two_images(opened: tuple[Any, ImageTask, Session]) -> None:
    model, task, session = opened
    images = draw(task)
    counts = [embed_images(session, [image]).count for image in images]
    first, second = ([image_models.TOKEN] * count for count in counts)
    ids = np.array([[5, *first, 7, 8, *second, 9]])
    embeddings = embed_images(session, images)
    decoder = Decoder(session, 1, ids.shape[1] + NEW)
    logits = decoder.prefill(ids, image_embeddings=embeddings)
    tokens = [int(logits.argmax())]
    while len(tokens) < NEW:
        tokens.append(int(decoder.step(np.array(tokens[-1:])).argmax()))
    assert tokens == torch_tokens(model, ids, images)


def test_a_second_prompt_goes_on_after_the_image(opened: tuple[Any, ImageTask, Session]) -> None:
    _, task, session = opened
    image = draw(task)[:1]
    embeddings = embed_images(session, image)
    first = prepend_images(np.array([[7, 8]]), embeddings, image_models.TOKEN)
    second = np.array([[9, 10, 11]])
    whole = Decoder(session, 1, 64)
    expected = whole.prefill(np.append(first, second, axis=1), image_embeddings=embeddings)
    turns = Decoder(session, 1, 64)
    turns.prefill(first, image_embeddings=embeddings)
    np.testing.assert_allclose(turns.prefill(second), expected, atol=1e-4)


def test_images_and_places_must_agree(opened: tuple[Any, ImageTask, Session]) -> None:
    _, task, session = opened
    embeddings = embed_images(session, draw(task)[:1])
    decoder = Decoder(session, 1, 64)
    with pytest.raises(EdgetieError, match=r"has 0 places .* and there are \d+"):
        decoder.prefill(np.array([[5, 6]]), image_embeddings=embeddings)
    with pytest.raises(EdgetieError, match=r"has 1 places .* and there are 0; give an image"):
        decoder.prefill(np.array([[5, image_models.TOKEN]]))
    assert decoder.prefill(np.array([[5, 6]])).shape[0] == 1  # text alone


def test_a_random_image_is_one_that_the_encoder_accepts(
    opened: tuple[Any, ImageTask, Session],
) -> None:
    _, task, session = opened
    image = random_image(
        session.encoder, session.bundle.manifest.signature, np.random.default_rng(0)
    )
    assert set(image) == set(task.image.names)
    assert embed_images(session, [image]).count > 0
    with pytest.raises(BundleError, match="ONNX Runtime failed"):
        embed_images(session, [{PIXELS: np.zeros((1, 2, 3), np.float32)}])


def test_int8_keeps_one_table(opened: tuple[Any, ImageTask, Session], tmp_path: Path) -> None:
    _, _, session = opened
    report = quantize_model(session.bundle.directory, tmp_path / "int8")
    (tie,) = report.manifest.ties
    assert tie.dtype in ("UINT8", "INT8")
    assert len(tie.uses) == 2
