"""Images to measure on."""

from __future__ import annotations

from pathlib import Path

import image_models
import numpy as np
import pytest
from image_cases import drawn

from edgetie.bundle.names import PIXELS
from edgetie.errors import BundleError, ImageError
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.images.samples import SampleImages, draw_image
from edgetie.runtime.session import Session, open_session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    directory = tmp_path_factory.mktemp("llava") / "bundle"
    image_models.export(image_models.build(image_models.llava()), directory)
    image_models.write_llava_processor(directory)
    return open_session(directory)


def test_drawn_images_differ_and_are_always_the_same() -> None:
    one, other = (draw_image(np.random.default_rng(seed)) for seed in range(2))
    again = draw_image(np.random.default_rng(0))
    assert (one.dtype, one.shape[2]) == (np.uint8, 3)
    assert not np.array_equal(np.unique(one), np.unique(other)) or one.shape != other.shape
    np.testing.assert_array_equal(one, again)


def test_files_are_read_in_order(session: Session, tmp_path: Path) -> None:
    for name, size in (("b.png", 20), ("a.jpg", 30), ("c.bmp", 40)):
        drawn(size, size).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = SampleImages(session.bundle, session.encoder, tmp_path)
    assert (len(images), images.description) == (3, f"3 images of {tmp_path}")
    process = ImageProcessor.from_bundle(session.bundle)
    for index, name in enumerate(("a.jpg", "b.png", "c.bmp", "a.jpg")):
        expected = process(tmp_path / name).feeds[PIXELS]
        np.testing.assert_array_equal(images.feeds(index)[PIXELS], expected)
    single = SampleImages(session.bundle, session.encoder, tmp_path / "b.png")
    assert len(single) == 1


def test_what_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file or directory"):
        SampleImages(session.bundle, session.encoder, tmp_path / "absent")
    with pytest.raises(ImageError, match="has no images"):
        SampleImages(session.bundle, session.encoder, tmp_path)
    (session.bundle.directory / "processor_config.json").rename(tmp_path / "processor.json")
    settings = session.bundle.directory / "preprocessor_config.json"
    settings.rename(tmp_path / "settings.json")
    drawn(9, 9).save(tmp_path / "a.png")
    try:
        with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
            SampleImages(session.bundle, session.encoder, tmp_path)
        images = SampleImages(session.bundle, session.encoder)
        assert images.description == "4 images of random pixels"
        assert images.feeds(0)[PIXELS].shape == (1, 3, 16, 16)
    finally:
        (tmp_path / "settings.json").rename(settings)
        (tmp_path / "processor.json").rename(session.bundle.directory / "processor_config.json")
