"""Positions of tokens in time, height and width."""

import numpy as np
import pytest

from edgetie.runtime.images.positions import image_positions

IMAGE = 9


def test_text_alone_counts_up() -> None:
    positions = image_positions(np.array([4, 5, 6]), IMAGE, [], merge=2)
    np.testing.assert_array_equal(positions, [[0, 1, 2]] * 3)


def test_an_image_counts_rows_and_columns_and_text_goes_on_after_the_largest() -> None:
    ids = np.array([1, *[IMAGE] * 6, 2, 3])
    positions = image_positions(ids, IMAGE, [(1, 4, 6)], merge=2)
    np.testing.assert_array_equal(
        positions,
        [
            [0, 1, 1, 1, 1, 1, 1, 4, 5],
            [0, 1, 1, 1, 2, 2, 2, 4, 5],
            [0, 1, 2, 3, 1, 2, 3, 4, 5],
        ],
    )


def test_images_that_follow_each_other() -> None:
    ids = np.array([*[IMAGE] * 4, *[IMAGE] * 2, 7])
    positions = image_positions(ids, IMAGE, [(1, 2, 2), (1, 1, 2)], merge=1)
    np.testing.assert_array_equal(positions[2], [0, 1, 0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("grids", "message"), [([], "more image tokens than images"), ([(1, 2, 3)], "fewer tokens")]
)
def test_images_of_other_sizes(grids: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_positions(np.array([IMAGE] * 4), IMAGE, grids, merge=1)
