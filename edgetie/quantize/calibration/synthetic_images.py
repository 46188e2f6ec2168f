"""Images to calibrate a model on that reads images: drawn ones."""

from typing import Any

import numpy as np
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle
from edgetie.runtime.images.samples import SampleImages
from edgetie.runtime.session import session_options


def calibration_images(bundle: Bundle) -> tuple[list[dict[str, np.ndarray[Any, Any]]], str]:
    """Return the encoder's inputs for a few drawn images, and a description of them.

    Raises:
        ImageError: if Pillow is not installed.
    """
    path = str(bundle.model_paths[0])
    session = ort.InferenceSession(path, session_options(1), enable_fallback=0)
    images = SampleImages(bundle, session)
    return [images.feeds(index) for index in range(len(images))], images.description
