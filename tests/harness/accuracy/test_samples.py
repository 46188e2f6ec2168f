"""Windows of a text, masked tokens and random ids are the ones that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from naive_decoder import table, write_decoder

from edgetie.harness.accuracy import samples
from edgetie.runtime.decoding.generation import make_decoder
from edgetie.runtime.session import open_session


def test_windows_do_not_overlap_and_carry_the_prefix() -> None:
    cut = [window.tolist() for window in samples.windows(range(10, 17), 4, [1])]
    assert cut == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16]]
    assert [len(window) for window in samples.windows(range(9), 4)] == [4, 4]


def test_random_ids_are_the_same_every_time() -> None:
    ids = samples.random_ids(500, 20)
    assert (ids == samples.random_ids(500, 20)).all()
    assert set(ids.tolist()) == set(range(20))


def test_prompts_are_spread_over_the_text() -> None:
    assert samples.spread(range(10), 2, 4) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert samples.spread(range(3), 4, 32) == [[0, 1, 2]]
    assert samples.spread(range(3), 0, 32) == []


def test_a_decoder_predicts_the_next_token_and_reads_no_suffix() -> None:
    (window, targets), *rest = samples.scored("causal-lm", [5, 6, 7], 10, prefix=[1], suffix=[2])
    assert window.tolist() == [1, 5, 6, 7]
    assert targets.tolist() == [5, 6, 7, -1]
    assert rest == []


def test_an_encoder_decoder_model_predicts_what_it_reads() -> None:
    ((window, targets),) = samples.scored("seq2seq-lm", [5, 6], 10, prefix=[1], suffix=[2])
    assert window.tolist() == targets.tolist() == [1, 5, 6, 2]


def test_masked_tokens_are_the_targets_and_special_ones_stay() -> None:
    ids = list(range(10, 210))
    ((window, targets),) = samples.scored("masked-lm", ids, 300, prefix=[1], suffix=[2], mask=3)
    masked = window == 3
    assert 0.1 < masked.mean() < 0.2
    assert (targets[masked] == np.array([1, *ids, 2])[masked]).all()
    assert (targets[~masked] == -1).all()
    assert (window[0], window[-1]) == (1, 2)
    again, other = (samples.masked(np.array(ids), 3, frozenset(), seed)[0] for seed in (0, 1))
    assert (again == samples.masked(np.array(ids), 3, frozenset(), 0)[0]).all()
    assert (again != other).any()


def test_nothing_is_predicted_without_a_mask_token() -> None:
    ((_, targets),) = samples.scored("masked-lm", [5, 6], 10)
    assert targets.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("task", "ids", "mask", "expected"),
    [
        ("causal-lm", [5, 6], None, True),  # one token: its error is not known
        ("causal-lm", [5, 6, 7], None, False),
        ("masked-lm", [5, 6, 7], None, False),  # there is nothing to predict
        ("masked-lm", [5, 6], 3, True),
        ("speech-seq2seq", [5, 6], None, False),
    ],
)
def test_texts_too_short_to_measure_on(
    task: str, ids: list[int], mask: int | None, expected: bool
) -> None:
    assert samples.too_short(samples.scored(task, ids, 10, mask=mask), task, mask) is expected


def test_a_prompt_generates_the_likeliest_tokens_of_each_sequence(tmp_path: Path) -> None:
    session = open_session(write_decoder(tmp_path, table()))
    ids = np.array([[5, 0, 95], [17, 3, 8]])
    prompt = samples.Prompt(session, ids, 3, {})
    assert (prompt.tokens, prompt.encoder_inputs) == (3, {})
    generated = np.array(list(prompt.generate(3)))
    assert generated.shape == (3, 2)
    decoder = make_decoder(session, 2, 3, 3)
    tokens = decoder.prefill(ids).argmax(axis=-1)
    np.testing.assert_array_equal(generated[0], tokens)
    np.testing.assert_array_equal(generated[1], decoder.step(tokens).argmax(axis=-1))
