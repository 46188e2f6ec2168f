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

_TOKENS = "input_ids"

IntArray = npt.NDArray[np.int32]

_EXCERPTS, _LENGTH = 4, 64  # of tokens that both models read
_TOLERANCE = 1e-6  # of the largest logit: products of fewer columns may sum in another order


class _Compared(BundleReference):
    """A bundle whose encoder reads inputs that it did not make itself.

    Attributes:
        inputs: what its encoder reads; ``None`` for what :meth:`encoder_inputs` makes of tokens.
    """

    inputs: dict[str, npt.NDArray[Any]] | None = None

    def encoder_inputs(self, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return super().encoder_inputs(ids) if self.inputs is None else self.inputs


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

    An encoder of audio or images reads the same noise or drawn images in both, and the excerpt if
    it reads a prompt too.

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
    reference = _Compared(source, prepack=False)
    signature = source.manifest.signature
    media = [t for t in (signature.audio_token_id, signature.image_token_id) if t is not None]
    tokens = tokens[~np.isin(tokens, media)]  # each needs an embedding in its place
    length = min(_LENGTH, reference.longest or _LENGTH)
    excerpts = [np.array([each], np.int64) for each in spread(tokens.tolist(), _EXCERPTS, length)]
    expected, inputs = [], []
    for ids in excerpts:
        reference.inputs = None
        reference.inputs = reference.encoder_inputs(ids)
        if _TOKENS in reference.inputs:
            prompt = reference.inputs[_TOKENS]
            reference.inputs[_TOKENS] = np.where(
                np.isin(prompt, media), prompt, np.resize(ids, prompt.shape)
            )
        inputs.append(reference.inputs)
        logits = reference.logits(ids)
        expected.append(logits[:, [token for token in kept if token < logits.shape[1]]])
    del reference
    numbers = np.zeros(max(kept) + 1, np.int64)
    numbers[kept] = np.arange(len(kept))
    pruned = _Compared(open_bundle(directory), prepack=False)
    largest = max(float(np.abs(logits).max()) for logits in expected)
    error = 0.0
    for ids, old, read in zip(excerpts, expected, inputs, strict=True):
        pruned.inputs = {n: numbers[array] if n == _TOKENS else array for n, array in read.items()}
        error = max(error, float(np.abs(pruned.logits(numbers[ids]) - old).max()))
    relative = error / max(largest, 1e-12)
    if not relative <= _TOLERANCE:
        raise PruneMismatchError(
            f"{source.directory}: pruned, its logits differ by {relative:.1e} of the largest; "
            "nothing was written"
        )
    return relative
