"""Decoding with graphs of fixed shapes, against numpy."""

from __future__ import annotations

from pathlib import Path

import bag_models as bag
import numpy as np
import pytest

from edgetie.errors import EdgetieError
from edgetie.runtime.decoding.fixed_shape_decoder import FixedShapeDecoder
from edgetie.runtime.session import Session, open_session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(bag.write_fixed(tmp_path))


def expect(logits: np.ndarray, ids: list[int]) -> None:
    assert logits.shape == (1, bag.VOCAB)
    np.testing.assert_allclose(logits[0], bag.logits(bag.TABLE[ids]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_prompts_and_steps_are_those_of_numpy(session: Session, count: int) -> None:
    ids = [7, 3, 11, 20, 2, 9, 14, 1, 5][:count]
    decoder = FixedShapeDecoder(session, 1, bag.CONTEXT)
    for _ in range(2):
        expect(decoder.prefill(np.array([ids])), ids)
        expect(decoder.step(np.array([6])), [*ids, 6])
        assert decoder.length == count + 1
        decoder.reset()


def test_a_prompt_in_parts_is_the_whole_prompt(session: Session) -> None:
    decoder = FixedShapeDecoder(session, 1, bag.CONTEXT)
    decoder.prefill(np.array([[7, 3]]))
    expect(decoder.prefill(np.array([[11, 20, 2]])), [7, 3, 11, 20, 2])


def test_padding_is_left_out(session: Session) -> None:
    decoder = FixedShapeDecoder(session, 1, bag.CONTEXT)
    expect(decoder.prefill(np.array([[0, 0, 8, 4]]), np.array([[0, 0, 1, 1]])), [8, 4])
    assert decoder.length == 2


def test_more_than_the_graphs_accept_is_refused(session: Session) -> None:
    with pytest.raises(EdgetieError, match="fixed for one sequence, not 2"):
        FixedShapeDecoder(session, 2, 4)
    with pytest.raises(EdgetieError, match="accepts 10 tokens, not 11"):
        FixedShapeDecoder(session, 1, 11)
    decoder = FixedShapeDecoder(session, 1, 4)
    assert decoder.max_length == bag.CONTEXT
    with pytest.raises(EdgetieError, match="no token"):
        decoder.prefill(np.zeros((1, 0), np.int64))
    decoder.prefill(np.ones((1, bag.CONTEXT), np.int64))
    with pytest.raises(EdgetieError, match="11 tokens exceed the context of 10"):
        decoder.step(np.array([1]))
