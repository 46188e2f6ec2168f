"""Image files that the starter in C reads, against Pillow."""

from __future__ import annotations

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from image_cases import drawn
from PIL import Image
from starters import SUPPORT, run

from edgetie.runtime.images.reading import read_image

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prints the pixels of a file; stops at the first wrong access to memory."""
    if shutil.which("cc") is None or shutil.which("pkg-config") is None:
        pytest.skip("needs a C compiler and pkg-config")
    if subprocess.run(["pkg-config", "--exists", "libpng", "libjpeg"]).returncode:
        pytest.skip("needs libpng and libjpeg")
    target = tmp_path_factory.mktemp("photo") / "photo_pixels"
    code = Path(str(files("edgetie.deploy"))) / "templates" / "c"
    flags = run(["pkg-config", "--cflags", "--libs", "libpng", "libjpeg"], code).split()
    run(
        ["cc", "-std=c11", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover", "-DWITH_PNG", "-DWITH_JPEG", f"-I{code}",
         SUPPORT / "photo_pixels.c", code / "photo.c", "-o", target, *flags],
        code,
    )  # fmt: skip
    return target


def pixels(program: Path, file: Path) -> np.ndarray:
    done = subprocess.run([program, file], capture_output=True)
    assert done.returncode == 0, done.stderr
    head, _, data = done.stdout.partition(b"\n")
    height, width = map(int, head.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def kinds(folder: Path) -> list[Path]:
    """Files of all kinds that are read exactly."""
    image = drawn(37, 52)
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    made = {
        "rgb.png": image, "grey.png": image.convert("L"), "palette.png": image.quantize(16),
        "bits.png": image.convert("1"), "alpha.png": alpha, "deep.png": deep,
        "rgb.ppm": image, "grey.pgm": image.convert("L"), "grey.jpg": image.convert("L"),
    }  # fmt: skip
    for name, each in made.items():
        each.save(folder / name)
    (folder / "comment.ppm").write_bytes(b"P6 # width\n2 # height\n1\n255\n" + bytes(range(6)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(folder / f"turned{orientation}.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_pixels_are_those_of_pillow(program: Path, tmp_path: Path) -> None:
    for file in kinds(tmp_path):
        expected = read_image(file).astype(int)
        found = pixels(program, file)
        assert found.shape == expected.shape, file
        # libraries of JPEG and of blending round differently
        most = 1 if file.name == "alpha.png" else 3 if file.suffix == ".jpg" else 0
        assert np.abs(found - expected).max() <= most, file


@pytest.mark.parametrize("name", ["rgb.png", "turned6.jpg", "rgb.ppm"])
def test_damaged_files_are_refused(program: Path, tmp_path: Path, name: str) -> None:
    kinds(tmp_path)
    data = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    for count in (0, 2, 9, 20, len(data) // 2, len(data) - 40):
        (tmp_path / "cut").write_bytes(data[:count])
        done = subprocess.run([program, tmp_path / "cut"], capture_output=True, text=True)
        assert done.returncode == 2, count
        assert done.stderr in ("a damaged image", "not PPM, PNG or JPEG", "an empty file")
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, min(400, len(data)), 3):
            damaged[place] = random.integers(0, 256)
        (tmp_path / "damaged").write_bytes(damaged)
        done = subprocess.run([program, tmp_path / "damaged"], capture_output=True)
        assert done.returncode in (0, 2), done.stderr
    done = subprocess.run([program, tmp_path / "absent"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "No such file or directory")
