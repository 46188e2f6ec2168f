"""Synthetic images to calibrate a vision-language model on."""

from typing import Any

import numpy as np
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle
from edgetie.runtime.images.embeddings import random_image
from edgetie.runtime.session import session_options

_IMAGES = 4
_SEED = 20240229


def calibration_images(bundle: Bundle) -> tuple[list[dict[str, np.ndarray[Any, Any]]], str]:
    """Return the encoder's inputs for a few images of random pixels, and a description of them."""
    random = np.random.default_rng(_SEED)
    path = str(bundle.model_paths[0])
    session = ort.InferenceSession(path, session_options(1), enable_fallback=0)
    return [random_image(session, random) for _ in range(_IMAGES)], f"{_IMAGES} random images"
