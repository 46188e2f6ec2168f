"""What a model's activations look like, measured on a short text."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.errors import QuantizeError
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.matching import weight
from edgetie.graph.operators import operator
from edgetie.quantize.calibration.layerwise_run import Feeds, Input, as_rows, record
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer

_TOKENS = 1024  # four times as many lower the divergence by a thirtieth
_MEASURED = 20480  # tokens at most that limits are held against
CHARACTERS = 16 * _MEASURED
"""Of a text that are read at most: words may be long."""

_TEXT = "calibration.txt"
_SEED = 20240229

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Text:
    """Tokens of one text.

    Attributes:
        calibrated: the first ones, to calibrate on.
        rest: those behind, to measure on.
        words: what the text is.
        prefix: special tokens in front of each piece that is read.
        suffix: those behind it.
        mask: the token that stands for one to be predicted, if there is one.
    """

    calibrated: list[int]
    rest: list[int]
    words: str
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    mask: int | None = None


def calibration_text(bundle: Bundle, text: str | None, models: Iterable[ir.Model]) -> Text:
    """What to calibrate on.

    Args:
        bundle: its tokenizer reads the text; without one the tokens are random, seeded.
        text: the user's own, or ``None`` for the built-in one.
        models: of the bundle.

    Raises:
        BundleError: if the tokenizer cannot be read.
        QuantizeError: if there is a text and no tokenizer to read it, or nothing in it, or tokens
            that the model does not have.
    """
    vocabulary, sure = _vocabulary(bundle, models)
    if not (bundle.directory / TOKENIZER).is_file():
        if text is not None:
            raise QuantizeError(f"{bundle.directory}: no {TOKENIZER} to read the calibration text")
        random = np.random.default_rng(_SEED).integers(0, vocabulary, 2 * _TOKENS).tolist()
        return Text(random[:_TOKENS], random[_TOKENS:], "random tokens")
    tokenizer = Tokenizer.from_bundle(bundle)
    read = (
        files("edgetie.quantize.calibration").joinpath(_TEXT).read_text("utf-8")
        if text is None
        else text
    )
    tokens = tokenizer.encode(read[:CHARACTERS], add_special_tokens=False)
    if not sure:
        tokens = [token for token in tokens if token < vocabulary]
    elif max(tokens, default=0) >= vocabulary:
        raise QuantizeError(
            f"{bundle.directory}: its tokenizer gives token {max(tokens)}, but the model has only "
            f"{vocabulary} tokens; they do not belong together"
        )
    if len(tokens) < 16:
        raise QuantizeError("the calibration text has fewer than 16 tokens; give a longer one")
    words = "built-in text" if text is None else "own text"
    prefix, suffix = tokenizer.surrounding
    rest = tokens[_TOKENS : _TOKENS + _MEASURED]
    return Text(tokens[:_TOKENS], rest, words, prefix, suffix, tokenizer.mask_token_id)


def _vocabulary(bundle: Bundle, models: Iterable[ir.Model]) -> tuple[int, bool]:
    """The number of tokens, and whether it is sure: of a bare file it is the rows of the table that
    the tokens are looked up in, or of the smallest large table; an encoder may have more.
    """
    if bundle.manifest.signature.vocab_size:
        return bundle.manifest.signature.vocab_size, bundle.manifest.encoder is None
    lookups = [
        (int(tensor.shape.numpy()[0]), node.inputs[1])
        for model in models
        for graph in model.graphs()
        for node in graph
        if operator(node) == "Gather"
        and (tensor := weight(node.inputs[0])) is not None
        and tensor.size >= MIN_ELEMENTS
    ]
    direct = [rows for rows, ids in lookups if ids is not None and ids.name == "input_ids"]
    return min(direct or [rows for rows, _ in lookups], default=1), bool(direct)


def read_feeds(path: Path) -> list[Feeds]:
    """A model's inputs to calibrate on, from an ``.npz`` file.

    Each array carries the name of an input and has one axis in front: a run for each entry.

    Raises:
        QuantizeError: if it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise QuantizeError(f"{path}: not a readable .npz file ({error})") from error
    lengths = {len(array) if array.ndim else 0 for array in found.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise QuantizeError(f"{path}: its arrays need one axis in front, a run for each entry")
    return [{n: array[run] for n, array in found.items()} for run in range(lengths.pop())]


def activations(
    bundle: Bundle, model_path: Path, names: Sequence[str], given: Input
) -> Iterator[tuple[str, Array]]:
    """Run a model; each of the named activations on all that it ran on, ``(tokens, channels)``.

    Args:
        bundle: what the model is part of.
        model_path: the model.
        names: values of the graph, ``(batch, sequence, channels)``.
        given: what to run it on.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    windows: defaultdict[str, list[Array]] = defaultdict(list)
    for name, values, last in record(bundle, model_path, names, given):
        windows[name].append(as_rows(values))
        if last:
            yield name, np.concatenate(windows.pop(name))
