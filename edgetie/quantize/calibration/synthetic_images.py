"""Synthetic images to calibrate a model on that reads images."""

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
    signature, random = bundle.manifest.signature, np.random.default_rng(_SEED)
    path = str(bundle.model_paths[0])
    session = ort.InferenceSession(path, session_options(1), enable_fallback=0)
    images = [random_image(session, signature, random) for _ in range(_IMAGES)]
    return images, f"{_IMAGES} random images"
