"""The tokens an accuracy check runs on: a text in windows, and seeded random ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

RANDOM_TOKENS = 256
"""Random ids reach rows of the embedding table that no short text uses."""

MASKED = 0.15
"""Share of tokens that are masked for a masked language model."""

_SEED = 20240229

BUILT_IN_TEXT = """\
The lighthouse at the end of the breakwater had been dark for eleven years when the two sisters \
bought it. Nobody in the village could say why they wanted it. The lamp room leaked, the stairs \
had lost every third step to rust, and in winter the sea came over the rocks and into the kitchen. \
"It has a good view," said the older one, and that was all the explanation anyone ever received. \
By spring they had replaced the stairs. By summer there were curtains in the lower windows, and \
on the first evening of September, a little after eight, the lamp turned once, slowly, and threw \
its beam across the bay. The fishermen stopped talking. One of them took off his hat.

Water boils when the pressure of its vapour equals the pressure of the air above it. At sea level \
this happens at 100 degrees Celsius; on a mountain, where the air is thinner, it happens earlier. \
At 3,000 metres water boils at about 90 degrees, which is why an egg takes longer to cook there. \
A pressure cooker does the opposite: it keeps the steam inside, the pressure rises to roughly two \
atmospheres, and the water reaches 120 degrees before it boils. Food cooks faster because most \
of the reactions that soften it double in speed for every ten degrees.

Question: A train leaves at 9:40 and arrives at 13:05. How long is the journey?
Answer: From 9:40 to 13:00 it is 3 hours and 20 minutes, and 5 minutes more make 3 hours and 25 \
minutes.

def moving_average(values, width):
    if width < 1:
        raise ValueError("width must be at least 1")
    total = sum(values[:width])
    result = [total / width]
    for old, new in zip(values, values[width:]):
        total += new - old
        result.append(total / width)
    return result

Dear Ms. Okafor,

Thank you for your letter of the 14th of May. We are sorry that the parcel reached you with a \
broken seal. A new one left our warehouse this morning; you do not need to send the old one back. \
If anything else is missing, please call us between nine and five on any weekday, and have the \
number of your order at hand. With kind regards, the customer service team.

To plant a tree, dig a hole twice as wide as the roots and no deeper than they are tall. Loosen \
the soil at the sides with a fork. Set the tree so that the mark on its stem is level with the \
ground, fill the hole in three layers, and water each of them. Drive a stake into the ground on \
the side the wind comes from and tie the stem to it, not too tightly, with something soft. During \
the first two summers the tree needs a bucket of water every week. After that it looks after \
itself, and in twenty years somebody will sit in its shade and wonder who planted it.

Der Zug nach Hamburg hatte wie immer Verspätung. Auf dem Bahnsteig las eine Frau die Zeitung, zwei \
Kinder zählten die Güterwagen auf dem Nachbargleis, und der Mann am Kiosk verkaufte seinen letzten \
Kaffee. Als der Zug endlich kam, war er leer.
"""
"""Written for this check: a story, an explanation, arithmetic, code, a letter, some German."""


def windows(
    ids: Sequence[int], length: int, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
) -> Iterator[Ids]:
    """Cut ``ids`` into consecutive windows that do not overlap.

    Args:
        ids: tokens of the whole text.
        length: tokens in a window, ``prefix`` included; the last window may be shorter.
        prefix: tokens in front of every window (the model's beginning-of-sequence token).
        suffix: tokens behind it.

    Yields:
        Windows of shape ``(tokens,)``; a rest of one token, which nothing predicts, is dropped.
    """
    step = length - len(prefix) - len(suffix)
    for start in range(0, len(ids), step):
        window = np.array([*prefix, *ids[start : start + step], *suffix], np.int64)
        if len(window) > 1:
            yield window


def next_tokens(window: Ids) -> Ids:
    """What a causal model should predict at each position: the next token, at the last nothing."""
    return np.append(window[1:], -1)


def scored(
    task: str,
    ids: Sequence[int],
    length: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    mask: int | None = None,
) -> Iterator[tuple[Ids, Ids]]:
    """A text in windows, each with what a model should predict at its tokens: -1 for nothing.

    Args:
        task: of the model. A decoder reads each window without ``suffix`` and predicts the next
            token, a masked language model those that are masked, an encoder-decoder model all of
            them, which both sides read.
        ids: tokens of the text.
        length: tokens in a window.
        prefix: special tokens in front of a text.
        suffix: those behind it.
        mask: the mask token, if there is one.
    """
    cut = windows(ids, length, prefix, () if task == "causal-lm" else suffix)
    for index, window in enumerate(cut):
        if task == "causal-lm":
            yield window, next_tokens(window)
        elif task == "masked-lm" and mask is not None:
            yield masked(window, mask, frozenset([*prefix, *suffix]), index)
        else:
            yield window, window if task == "seq2seq-lm" else np.full_like(window, -1)


def too_short(windows: Iterable[tuple[Ids, Ids]], task: str, mask: int | None) -> bool:
    """Whether :func:`scored` windows have fewer than two tokens to predict where they could have
    more: the error of one alone is not known.
    """
    none = task not in ("causal-lm", "seq2seq-lm") and (task != "masked-lm" or mask is None)
    return not none and sum(int((targets >= 0).sum()) for _, targets in windows) < 2


def masked(window: Ids, mask: int, keep: frozenset[int], seed: int) -> tuple[Ids, Ids]:
    """A window with 15 % of its tokens masked, as BERT was trained (Devlin et al. 2018).

    Args:
        window: ``(tokens,)``.
        mask: the mask token.
        keep: special tokens, which are not masked.
        seed: another one for each window.

    Returns:
        The window, and what should be predicted: the masked tokens, -1 elsewhere.
    """
    chosen = np.random.default_rng([_SEED, seed]).random(len(window)) < MASKED
    chosen &= ~np.isin(window, sorted(keep))
    return np.where(chosen, mask, window), np.where(chosen, window, -1)


def random_ids(count: int, vocab_size: int) -> Ids:
    """Ids drawn evenly from the vocabulary, the same at every call: ``(count,)``."""
    return np.random.default_rng(_SEED).integers(0, vocab_size, count, dtype=np.int64)


def spread(ids: Sequence[int], count: int, length: int) -> list[list[int]]:
    """``count`` pieces of ``length`` tokens, evenly over ``ids``; all of it once if it is short."""
    room = len(ids) - length
    if room <= 0:
        return [list(ids)][:count]
    starts = [round(index * room / count) for index in range(count)]
    return [list(ids[start : start + length]) for start in starts]
