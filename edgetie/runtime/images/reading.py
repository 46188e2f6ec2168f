"""Read images: files, Pillow's images and arrays become RGB pixels. Needs Pillow."""

from __future__ import annotations

import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import ImageError, summarize

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = "str | os.PathLike[str] | IO[bytes] | Image | NDArray[np.uint8]"

_WHITE = (255, 255, 255, 255)
_CONVERT = "convert it to PNG or JPEG"


def require_pillow() -> None:
    """Refuse to work without Pillow.

    Raises:
        ImageError: if Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise ImageError(
            "reading images needs Pillow; install it with: pip install pillow, or in the checkout "
            'of edgetie: pip install ".[images]"'
        )


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read an image as RGB.

    It is rotated as its EXIF orientation says. Transparent pixels are blended with white. Of 16
    bits the upper 8 are kept. Of an animation the first image is read.

    Args:
        source: a path, a binary file, a ``PIL.Image.Image``, or an array ``(height, width)``,
            ``(height, width, 1)``, ``(height, width, 3)`` or ``(height, width, 4)``, uint8.

    Returns:
        ``(height, width, 3)``.

    Raises:
        ImageError: if Pillow is not installed, or the image cannot be read, has no pixels or more
            than ``PIL.Image.MAX_IMAGE_PIXELS``. The message names the file.
    """
    require_pillow()
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with Path(name).open("rb") as file:
                return _decode(file, name)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = getattr(error, "strerror", None) or summarize(error)
            raise ImageError(f"{name}: cannot be read ({reason}); check the path") from error
    if callable(getattr(source, "read", None)):
        return _decode(source, str(getattr(source, "name", "the image")))
    raise ImageError(
        f"an image cannot be read from {type(source).__name__}; pass a path, a binary file, a "
        "PIL.Image.Image or an array"
    )


def image_files(path: Path) -> list[Path]:
    """List an image file, or those of a directory in the order of their names.

    Raises:
        ImageError: if it does not exist or has none.
    """
    require_pillow()
    from PIL import Image

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"{path}: no such file or directory; check the path")
    endings = Image.registered_extensions()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
    if not files:
        raise ImageError(f"{path}: has no images; put PNG or JPEG files into it")
    return files


def _decode(file: IO[bytes], name: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not isinstance(file.read(0), bytes):
                raise ImageError(f"{name}: a text file; open it with mode 'rb'")
            with Image.open(file) as image:
                image.load()
                return _to_rgb(image, name)
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name}: has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that Pillow can read; {_CONVERT}") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        raise ImageError(
            f"{name}: a damaged image, or cut short ({summarize(error)}); copy it again, or "
            f"{_CONVERT}"
        ) from error


def _to_rgb(image: Image, name: str) -> NDArray[np.uint8]:
    """Rotate and convert as transformers does, but keep the scale of 16 bits."""
    from PIL import Image

    if not image.width or not image.height:
        raise ImageError(f"{name}: has no pixels; pass another image")
    try:
        image = _to_8_bits(_upright(image), name)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
        return np.array(image.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # a file that is decoded only now, or a mode without a conversion
        raise ImageError(
            f"{name}: pixels of mode {image.mode} cannot be converted to RGB "
            f"({summarize(error)}); {_CONVERT}"
        ) from error


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of damaged metadata; the pixels are whole
        logger.debug("EXIF data cannot be read", exc_info=True)
        return image


def _to_8_bits(image: Image, name: str) -> Image:
    """Keep the upper 8 of 16 bits, which Pillow itself would clip."""
    from PIL import Image

    if image.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels, whose range is unknown; {_CONVERT}")
    if not image.mode.startswith("I"):
        return image
    pixels = np.array(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() >= 1 << 16:
        raise ImageError(f"{name}: has more than 16 bits per pixel; {_CONVERT}")
    has_16_bits = image.mode != "I" or pixels.max() > 255  # "I" holds any integers
    return Image.fromarray((pixels >> 8 * has_16_bits).astype(np.uint8))


def _from_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    from PIL import Image

    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ImageError(
            f"an image is an array (height, width, 3), not {pixels.shape}; transpose it, or pass "
            "one image at a time"
        )
    if pixels.dtype != np.uint8:
        raise ImageError(f"an image is an array of uint8, not {pixels.dtype}; scale it to 0 to 255")
    if not pixels.size:
        raise ImageError("the image: has no pixels; pass another image")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), "the image")
