"""Calibration texts, and the activations of a run on calibration data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.matching import operator, weight
from edgetie.quantize.calibration.layerwise_run import Array, CalibrationInput, run_layerwise
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer

_TOKENS = 1024  # four times as many lower the divergence by a thirtieth
_EVALUATED = 20480  # tokens at most that limits are measured on
MAX_CHARACTERS = 16 * _EVALUATED
"""How much of a text is read. Words may be long."""

_SEED = 20240229


@dataclass(frozen=True)
class CalibrationText:
    """Tokens of one text.

    Attributes:
        calibration: the first tokens, to calibrate on.
        evaluation: the tokens after them, to measure accuracy on.
        description: where the text is from.
        prefix: special tokens before each window of the text.
        suffix: special tokens after each window.
        mask: the mask token, if the tokenizer has one.
    """

    calibration: list[int]
    evaluation: list[int]
    description: str
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    mask: int | None = None


def calibration_text(
    bundle: Bundle, text: str | None, models: Iterable[ir.Model]
) -> CalibrationText:
    """Tokenize a text to calibrate on.

    Args:
        bundle: its tokenizer reads the text. Without a tokenizer the tokens are random, seeded.
        text: the user's own, or ``None`` for the built-in one.
        models: of the bundle.

    Raises:
        BundleError: if the tokenizer cannot be read.
        QuantizeError: if the text has no tokenizer, too few tokens, or tokens that the model does
            not have.
    """
    vocab_size, is_certain = _vocab_size(bundle, models)
    if not (bundle.directory / TOKENIZER).is_file():
        if text is not None:
            raise QuantizeError(f"{bundle.directory}: no {TOKENIZER} to read the calibration text")
        random = np.random.default_rng(_SEED).integers(0, vocab_size, 2 * _TOKENS).tolist()
        return CalibrationText(random[:_TOKENS], random[_TOKENS:], "random tokens")
    description = "built-in text" if text is None else "own text"
    text = _builtin_text() if text is None else text
    tokenizer = Tokenizer.from_bundle(bundle)
    tokens = tokenizer.encode(text[:MAX_CHARACTERS], add_special_tokens=False)
    if not is_certain:
        tokens = [token for token in tokens if token < vocab_size]
    elif max(tokens, default=0) >= vocab_size:
        raise QuantizeError(
            f"{bundle.directory}: its tokenizer gives token {max(tokens)}, but the model has only "
            f"{vocab_size} tokens; they do not belong together"
        )
    if len(tokens) < 16:
        raise QuantizeError("the calibration text has fewer than 16 tokens; give a longer one")
    calibration, evaluation = tokens[:_TOKENS], tokens[_TOKENS : _TOKENS + _EVALUATED]
    return CalibrationText(
        calibration, evaluation, description, *tokenizer.surrounding, tokenizer.mask_token_id
    )


def builtin_tokens(tokenizer: Tokenizer) -> list[int]:
    """Encode the part of the built-in text that is calibrated on."""
    return tokenizer.encode(_builtin_text(), add_special_tokens=False)[:_TOKENS]


def _builtin_text() -> str:
    return files("edgetie.quantize.calibration").joinpath("calibration.txt").read_text("utf-8")


def _vocab_size(bundle: Bundle, models: Iterable[ir.Model]) -> tuple[int, bool]:
    """Return the number of tokens, and whether it is certain."""
    if bundle.manifest.signature.vocab_size:  # an encoder may have more tokens
        return bundle.manifest.signature.vocab_size, bundle.manifest.encoder is None
    embeddings = [
        (int(tensor.shape.numpy()[0]), node.inputs[1])
        for model in models
        for graph in model.graphs()
        for node in graph
        if operator(node) == "Gather"
        and (tensor := weight(node.inputs[0])) is not None
        and tensor.size >= MIN_ELEMENTS
    ]
    # of a bare file: the embedding that reads input_ids, or else the smallest
    of_tokens = [size for size, ids in embeddings if ids is not None and ids.name == "input_ids"]
    return min(of_tokens or [size for size, _ in embeddings], default=1), bool(of_tokens)


def collect_activations(
    bundle: Bundle, model_path: Path, names: Sequence[str], inputs: CalibrationInput
) -> Iterator[tuple[str, Array]]:
    """Yield each of the named activations of :func:`run_layerwise` once, for all tokens."""
    windows: defaultdict[str, list[Array]] = defaultdict(list)
    for activation in run_layerwise(bundle, model_path, names, inputs):
        windows[activation.name].append(activation.tokens)
        if activation.is_last:
            yield activation.name, np.concatenate(windows.pop(activation.name))
