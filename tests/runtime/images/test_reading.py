"""Images of every mode, and files that are not images."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_cases import drawn
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from edgetie.errors import ImageError
from edgetie.runtime.images.reading import read_image


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_an_image_is_the_same_from_every_source(tmp_path: Path) -> None:
    image = drawn(20, 30)
    expected = np.asarray(image)
    path = saved(image, tmp_path / "image.png")
    for source in (path, str(path), image, expected, io.BytesIO(path.read_bytes())):
        pixels = read_image(source)
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.dtype == np.uint8
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_image(file), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb_as_in_transformers(mode: str) -> None:
    image = drawn(20, 30)
    if mode in ("LA", "PA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    np.testing.assert_array_equal(read_image(image), convert_to_rgb(image, return_numpy=True))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "palette.png", transparency=0)
    assert read_image(path).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    pixels = np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)
    assert read_image(pixels).tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_the_upper_half_of_16_bits_is_kept(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "deep.png")
    assert read_image(path)[0, :, 0].tolist() == [0, 0, 1, 255]
    integers = Image.fromarray(values.astype(np.int32))
    assert read_image(integers)[0, :, 0].tolist() == [0, 0, 1, 255]
    assert read_image(Image.new("I", (1, 1), 200)).tolist() == [[[200, 200, 200]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_as_their_camera_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(drawn(20, 30), tmp_path / "photo.png", exif=exif)
    pixels = read_image(path)
    assert pixels.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    restored = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
        5: lambda p: p.swapaxes(0, 1), 6: np.rot90, 7: lambda p: np.rot90(p.swapaxes(0, 1), 2),
        8: lambda p: np.rot90(p, 3),
    }[orientation](pixels)  # fmt: skip
    np.testing.assert_array_equal(restored, np.asarray(drawn(20, 30)))


def test_damaged_metadata_does_not_matter(tmp_path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01\x03\x00"
    path = saved(drawn(20, 30), tmp_path / "photo.jpg", exif=exif)
    assert read_image(path).shape == (20, 30, 3)


def test_the_first_image_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    path = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_image(path) == 10).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "ppm"])
def test_files_cut_short_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = saved(drawn(90, 100), tmp_path / f"image.{suffix}")
    data = path.read_bytes()
    for length in (0, 1, 10, 30, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=rf"^{path}: .*(copy it again|convert it)[^\n]*$"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_changed_bytes_give_an_image_or_an_error(suffix: str, tmp_path: Path) -> None:
    path = saved(drawn(40, 50), tmp_path / f"image.{suffix}")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        changed = data.copy()
        places = random.integers(0, min(len(data), 400), 3)
        changed[places] = random.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except ImageError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image" * 99, encoding="utf-8")
    with pytest.raises(ImageError, match=r"notes\.png: not an image that Pillow can read; convert"):
        read_image(path)
    with pytest.raises(ImageError, match=r"absent\.png: cannot be read \(No such file.*check the"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.png")
    with path.open(encoding="utf-8") as file, pytest.raises(ImageError, match="a text file"):
        read_image(file)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="from bytes; pass a path"):
        read_image(b"abc")  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_files_without_permission_are_refused(tmp_path: Path) -> None:
    path = saved(drawn(4, 4), tmp_path / "image.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_images_of_too_many_pixels_are_refused(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(drawn(100, 100), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 * share))
    with pytest.raises(ImageError, match=r"large\.png: has more than .* pixels; make it smaller"):
        read_image(path)


def test_images_that_cannot_be_converted_are_refused() -> None:
    for image, message in (
        (Image.new("RGB", (0, 5)), "has no pixels"),
        (Image.new("F", (2, 2)), "floating-point"),
        (Image.new("La", (2, 2)), "mode La cannot be converted"),
        (Image.new("I", (2, 2), 1 << 20), "more than 16 bits"),
        (Image.new("I", (2, 2), -1), "more than 16 bits"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(image)


def test_arrays_of_other_shapes_are_refused() -> None:
    for shape in ((3, 20, 30), (20,), (1, 20, 30, 3), (20, 30, 2), ()):
        with pytest.raises(ImageError, match=r"array \(height, width, 3\), not \("):
            read_image(np.zeros(shape, np.uint8))
    for dtype in (np.float32, np.uint16, bool):
        with pytest.raises(ImageError, match="array of uint8"):
            read_image(np.zeros((2, 2, 3), dtype))
    with pytest.raises(ImageError, match="no pixels"):
        read_image(np.zeros((0, 5, 3), np.uint8))


def test_without_pillow_the_error_says_how_to_install_it() -> None:
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "import edgetie\n"
        "try: edgetie.read_image('image.png')\n"
        "except edgetie.ImageError as error: print(error)"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install pillow" in run.stdout
