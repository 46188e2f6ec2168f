"""Arrays in a file without a name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgetie.quantize.weights.array_spill import ArraySpill


def test_arrays_come_back_in_any_order(tmp_path: Path) -> None:
    spill = ArraySpill(tmp_path)
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 5)).astype(np.float32),
        rng.integers(0, 255, (2, 3, 7)).astype(np.uint8),
        rng.normal(size=(64, 64)).T,  # not contiguous
        np.array([1.5]),
    ]
    readers = [spill.put(array) for array in arrays]
    for array, read in reversed(list(zip(arrays, readers, strict=True))):
        result = read()
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(result, array)
    with pytest.raises(ValueError, match="read-only"):
        readers[0]()[0, 0] = 0


def test_threads_may_write_at_once_and_the_file_has_no_name(tmp_path: Path) -> None:
    spill = ArraySpill(tmp_path)
    arrays = [np.full((100, 10), i, np.int32) for i in range(50)]
    with ThreadPoolExecutor(8) as pool:
        readers = list(pool.map(spill.put, arrays))
    for array, read in zip(arrays, readers, strict=True):
        np.testing.assert_array_equal(read(), array)
    assert list(tmp_path.iterdir()) == []
