"""Propose the tokens that follow from the text so far, and verify several in one run of the model.

When the last tokens of a text occurred in it before, those that followed then are proposed (prompt
lookup decoding, Saxena, 2023). The model reads them in one run and gives the logits after each.
Every token is still selected from its own logits, and proposals are accepted as long as they are
the tokens selected. So the text is the one that the model writes token by token, also with sampling
(the same seed draws the same numbers), constraints and repetition penalties.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetie.runtime.decoding.decoder import Decoder

_MOST = 4
"""Most tokens proposed. With edgetie's kernels, 5 tokens take 1.7 times as long as one."""
_SHORTEST, _LONGEST = 2, 3
"""Last tokens of the text that must have occurred before, and that are compared at most."""


class Speculation:
    """The continuation of one sequence by a session that speculates.

    Attributes:
        proposed, accepted: numbers of tokens so far.
    """

    def __init__(self, decoder: Decoder, text: Sequence[int], excluded: Iterable[int]) -> None:
        """Start after ``text``, which the decoder has read; ``excluded`` are never proposed."""
        self.proposed = self.accepted = 0
        self._decoder = decoder
        self._text = np.empty(len(text) + decoder.max_length - decoder.length + 1, np.int64)
        self._text[: len(text)] = text
        self._length = len(text)
        self._excluded = frozenset(excluded)
        self._proposal = np.empty(0, np.int64)
        self._verified = 0  # of the proposal
        self._most = _MOST // 2
        self._logits = np.empty((0, 0), np.float32)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token ``(1,)``; returns the logits ``(1, vocabulary)`` of the next one."""
        self._text[self._length] = tokens[0]
        self._length += 1
        awaited = self._proposal[self._verified : self._verified + 1]
        if len(awaited) and awaited[0] == tokens[0]:
            self._verified += 1
            self.accepted += 1
            self._decoder.length += 1
        else:
            self._run(tokens)
        return self._logits[self._verified, None]

    def _run(self, token: NDArray[np.int64]) -> None:
        """Read a token and what is proposed after it."""
        if len(self._proposal):
            is_whole = self._verified == len(self._proposal)
            self._most = min(2 * self._most, _MOST) if is_whole else self._verified + 1
        room = self._decoder.max_length - self._decoder.length - 1
        proposal = propose(self._text[: self._length], min(self._most, room))
        ends = (i for i, token in enumerate(proposal.tolist()) if token in self._excluded)
        self._proposal, self._verified = proposal[: next(ends, None)], 0
        self.proposed += len(self._proposal)
        self._logits = self._decoder.verify(np.concatenate([token, self._proposal]))
        self._decoder.length -= len(self._proposal)


def propose(text: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return up to ``most`` tokens that followed the last ones of ``text`` when they last occurred.

    As many of the last tokens as possible are compared, at least two and at most three.
    """
    if len(text) < _SHORTEST:
        return text[:0]
    followers = np.flatnonzero(text[:-1] == text[-1]) + 1  # where the tokens that followed are
    for count in range(_SHORTEST, _LONGEST + 1):
        longer = followers[followers >= count]
        longer = longer[text[longer - count] == text[-count]]
        if not len(longer):
            if count == _SHORTEST:
                return text[:0]
            break
        followers = longer
    return text[followers[-1] : followers[-1] + most]
