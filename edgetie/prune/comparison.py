"""Compare a pruned bundle with its source: tokens of texts, and logits of kept tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import PruneMismatchError
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.samples import spread
from edgetie.prune.kept_text import chunks
from edgetie.runtime.text.tokenizer import Tokenizer

IntArray = npt.NDArray[np.int32]

_EXCERPTS, _LENGTH = 4, 64  # of tokens that both models read
_TOLERANCE = 1e-6  # of the largest logit: products of fewer columns may sum in another order


class _Pruned(BundleReference):
    """A pruned bundle, whose encoder reads the images or audio that its source reads."""

    def __init__(self, bundle: Bundle, kept: Sequence[int]) -> None:
        self._kept = np.array(kept)
        super().__init__(bundle, prepack=False)

    def encoder_inputs(self, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Choose images or audio, which depend on tokens, by the numbers of the source."""
        return super().encoder_inputs(self._kept[ids] if self.media else ids)


def require_tokens(
    pruned: Tokenizer, texts: Sequence[str], expected: IntArray, kept: Sequence[int]
) -> None:
    """Check that a pruned tokenizer encodes texts as its source.

    Args:
        pruned: the tokenizer.
        texts: what it encodes, part by part.
        expected: the tokens of all texts, in the numbers of the source.
        kept: old tokens in the order of the new ones.

    Raises:
        PruneMismatchError: with the beginning of the first part that differs.
    """
    start, old = 0, np.array(kept)
    for text in chunks(texts):
        tokens = old[pruned.encode(text)]
        if not np.array_equal(tokens, expected[start : start + len(tokens)]):
            raise PruneMismatchError(
                f"the pruned tokenizer makes other tokens of {text[:40]!r}…; nothing was written"
            )
        start += len(tokens)


def compare_logits(source: Bundle, directory: Path, tokens: IntArray, kept: Sequence[int]) -> float:
    """Run both models on excerpts of a text, one model in memory at a time.

    An encoder of audio or images reads the same noise or drawn images in both.

    Args:
        source: the bundle that was pruned.
        directory: of the pruned one.
        tokens: of a text, in the numbers of the source.
        kept: old tokens in the order of the new ones.

    Returns:
        The largest difference of the logits of kept tokens, relative to the largest of them.

    Raises:
        PruneMismatchError: if it is more than 10⁻⁶.
    """
    reference = BundleReference(source, prepack=False)
    signature = source.manifest.signature
    media = [t for t in (signature.audio_token_id, signature.image_token_id) if t is not None]
    tokens = tokens[~np.isin(tokens, media)]  # each needs an embedding in its place
    length = min(_LENGTH, reference.longest or _LENGTH)
    excerpts = [np.array([each], np.int64) for each in spread(tokens.tolist(), _EXCERPTS, length)]
    expected = []
    for ids in excerpts:
        logits = reference.logits(ids)
        expected.append(logits[:, [token for token in kept if token < logits.shape[1]]])
    del reference
    numbers = np.zeros(max(kept) + 1, np.int64)
    numbers[kept] = np.arange(len(kept))
    pruned = _Pruned(open_bundle(directory), kept)
    largest = max(float(np.abs(logits).max()) for logits in expected)
    pairs = zip(excerpts, expected, strict=True)
    error = max(float(np.abs(pruned.logits(numbers[ids]) - old).max()) for ids, old in pairs)
    relative = error / max(largest, 1e-12)
    if not relative <= _TOLERANCE:
        raise PruneMismatchError(
            f"{source.directory}: pruned, its logits differ by {relative:.1e} of the largest; "
            "nothing was written"
        )
    return relative
