"""What a model's activations look like, measured on a short text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetie.bundle import AUDIO, LAST_TOKEN_NODE, Bundle
from edgetie.errors import QuantizeError
from edgetie.quantize.compensate import gram
from edgetie.runtime.graph import without_last_token
from edgetie.runtime.hearing import with_sound

_WINDOW = 256  # tokens of one run: keeps the recorded activations small
_TOKENS = 1024  # four times as many lower the divergence by a thirtieth
_MEASURED = 20480  # tokens at most that limits are held against
_KEPT = 16  # rows kept of each window
_TEXT = "calibration.txt"
_SEED = 20240229

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Activation:
    """One activation on the calibration text.

    Attributes:
        magnitudes: root mean square of each channel.
        rows: a few tokens' values ``(tokens, channels)``.
        gram: how channels vary together (:func:`edgetie.quantize.compensate.gram`).
    """

    magnitudes: Array
    rows: Array
    gram: Array


@dataclass(frozen=True)
class Text:
    """Tokens of one text.

    Attributes:
        calibrated: the first ones, to calibrate on.
        rest: those behind, to measure on.
        words: what the text is.
    """

    calibrated: list[int]
    rest: list[int]
    words: str


def calibration_text(bundle: Bundle, text: str | None, vocabulary: int) -> Text:
    """What to calibrate on.

    Args:
        bundle: its tokenizer reads the text; without one the tokens are random, seeded.
        text: the user's own, or ``None`` for the built-in one.
        vocabulary: number of rows of the embedding table.

    Raises:
        QuantizeError: if there is a text and no tokenizer to read it, or nothing in it.
    """
    path = bundle.directory / "tokenizer.json"
    if bundle.manifest is None or not path.is_file():
        if text is not None:
            raise QuantizeError(
                f"{bundle.directory}: no tokenizer.json to read the calibration text"
            )
        random = np.random.default_rng(_SEED).integers(0, vocabulary, 2 * _TOKENS).tolist()
        return Text(random[:_TOKENS], random[_TOKENS:], "random tokens")
    from tokenizers import Tokenizer

    read = files("edgetie.quantize").joinpath(_TEXT).read_text("utf-8") if text is None else text
    tokens = Tokenizer.from_file(str(path)).encode(read).ids
    tokens = [token for token in tokens if token < vocabulary]
    if len(tokens) < 16:
        raise QuantizeError("the calibration text has fewer than 16 tokens; give a longer one")
    words = "built-in text" if text is None else "own text"
    return Text(tokens[:_TOKENS], tokens[_TOKENS : _TOKENS + _MEASURED], words)


def measure(
    bundle: Bundle,
    model_path: Path,
    names: Sequence[str],
    tokens: Sequence[int],
    clips: Sequence[dict[str, Array]] = (),
) -> dict[str, Activation]:
    """Run a model over ``tokens`` and look at the named activations.

    Args:
        bundle: it may limit the length of a sequence, and have an encoder that is run first.
        model_path: a model with ``input_ids``, ``attention_mask`` and perhaps a KV cache.
        names: values of the graph, ``(batch, sequence, channels)``.
        tokens: a text; it is read in windows of 256 tokens.
        clips: what an encoder reads of sounds, for one that hears.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    limit = bundle.manifest.signature.max_positions if bundle.manifest is not None else None
    window = min(_WINDOW, limit or _WINDOW)
    grams: dict[str, Array] = {}
    rows: dict[str, list[Array]] = {name: [] for name in names}
    counts: Counter[str] = Counter()
    try:
        session, outputs = _session(model_path, names)
        first = bundle.model_paths[0]
        behind = first != model_path
        encoder = _open(onnx.load(str(first), load_external_data=False), first) if behind else None
        texts = [
            np.array(tokens[start : start + window], np.int64)[None]
            for start in range(0, len(tokens), window)
        ]
        for index in range(len(clips) if clips and encoder is None else len(texts)):
            ids = texts[index % len(texts)]
            clip = clips[index % len(clips)] if clips else {}
            made = clip if encoder is None else _encoded(encoder, ids, clip)
            if AUDIO in made and bundle.manifest is not None:
                token = bundle.manifest.signature.audio_token_id
                ids, made[AUDIO] = with_sound(ids, made[AUDIO], token, ids.shape[1])
                ids = ids[:, :limit]
            feeds = _feeds(session, ids, made)
            for name, result in zip(names, session.run(outputs, feeds), strict=True):
                flat = result.reshape(-1, result.shape[-1])
                counts[name] += len(flat)
                grams[name] = grams.get(name, 0) + gram(flat)
                rows[name].append(flat[:: max(1, len(flat) // _KEPT)].copy())
    except Exception as error:
        raise QuantizeError(f"{model_path}: calibration cannot run it ({error})") from error
    return {
        name: _activation(grams[name], np.concatenate(rows[name]), counts[name]) for name in names
    }


def _activation(gram: Array, rows: Array, count: int) -> Activation:
    energy = np.einsum("rjj->rj", gram).reshape(-1)[: rows.shape[1]]
    return Activation(np.sqrt(energy / count), rows, gram)


def _session(model_path: Path, names: Sequence[str]) -> tuple[Any, list[str]]:
    """A session over the graph up to ``names``, for all tokens; weights stay in their file."""

    model = onnx.load(str(model_path), load_external_data=False)
    selection = next((n for n in model.graph.node if n.name == LAST_TOKEN_NODE), None)
    outputs = list(names)
    every = without_last_token(model_path)
    if selection is not None and every is not None:
        model = onnx.load_from_string(every)
        made = {name for node in model.graph.node for name in node.output}
        outputs = [name if name in made else selection.input[0] for name in names]
    _keep_only(model.graph, outputs)
    return _open(model, model_path), outputs


def _open(model: onnx.ModelProto, model_path: Path) -> Any:
    """A session over a graph whose weights lie beside ``model_path``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model_path.parent.resolve())
    )
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _encoded(encoder: Any, ids: Array, clip: dict[str, Array]) -> dict[str, Array]:
    """What an encoder makes, for the decoder, of a sound; or else of the text that both read."""
    names = [value.name for value in encoder.get_outputs()]
    results = encoder.run(names, _feeds(encoder, ids, clip))
    made = {
        name.replace("present.", "past_key_values.", 1): result
        for name, result in zip(names, results, strict=True)
    }
    return made | {"encoder_attention_mask": np.ones_like(ids)}


def _keep_only(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Make ``outputs`` the graph's outputs and drop the nodes that they do not need."""
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output) or any(a.HasField("g") for a in node.attribute):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    unused = [tensor for tensor in graph.initializer if tensor.name not in needed]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _feeds(session: Any, ids: Array, given: dict[str, Array]) -> dict[str, Array]:
    """One window of tokens, nothing cached but what is given."""
    feeds: dict[str, Array] = {}
    for value in session.get_inputs():
        if value.name in given:
            feeds[value.name] = given[value.name]
        elif value.name == "input_ids":
            feeds[value.name] = ids
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones_like(ids)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.shape[1])[None]
        elif value.name == "token_type_ids":
            feeds[value.name] = np.zeros_like(ids)
        else:
            shape = [1 if axis == 0 else 0 if not isinstance(d, int) else d
                     for axis, d in enumerate(value.shape)]  # fmt: skip
            feeds[value.name] = np.zeros(shape, np.float32)
    return feeds
