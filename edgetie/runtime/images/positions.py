"""Positions of tokens in time, height and width (Qwen2-VL, https://arxiv.org/abs/2409.12191)."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray


def image_positions(
    ids: NDArray[np.int64], image_token: int, grids: Iterable[Any], merge: int
) -> NDArray[np.int64]:
    """Compute the positions of a prompt's tokens.

    The tokens of an image have its time, and the row and column of their patch, counted from the
    position after the text before. The text after it goes on after the largest of these.

    Args:
        ids: of the prompt, ``(count,)``.
        image_token: the token whose embeddings are replaced by those of images.
        grids: patches of each image in time, height and width, in order.
        merge: number of patches that one token stands for, in height and in width.

    Returns:
        ``(3, count)``.

    Raises:
        ValueError: if the images have other numbers of tokens than their grids.
    """
    remaining = iter(grids)
    parts: list[NDArray[np.int64]] = []
    start = 0
    for is_image, run in groupby(ids == image_token):
        count = len(list(run))
        text = [np.tile(np.arange(count), (3, 1))]
        for part in _image_parts(count, remaining, merge) if is_image else text:
            parts.append(part + start)
            start = int(parts[-1].max()) + 1
    return np.concatenate(parts, axis=1)


def _image_parts(count: int, grids: Iterator[Any], merge: int) -> Iterator[NDArray[np.int64]]:
    """Positions of ``count`` tokens of one image or several that follow each other."""
    while count > 0:
        grid = next(grids, None)
        if grid is None:
            raise ValueError("more image tokens than images")
        time, height, width = (int(size) for size in grid)
        axes = np.indices((time, height // merge, width // merge)).reshape(3, -1)
        count -= axes.shape[1]
        yield axes
    if count:
        raise ValueError("an image has fewer tokens than its grid")
