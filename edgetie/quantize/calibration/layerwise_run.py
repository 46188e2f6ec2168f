"""A model run over a text, some of its activations kept: a few layers at a time.

The graph is cut where its weights have grown to some size. Each piece runs over all windows of the
text before the next one starts, on what the one before has left, so that no more than one piece's
weights are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import AUDIO, LAST_TOKEN_NODE
from edgetie.errors import QuantizeError
from edgetie.harness.accuracy.samples import windows
from edgetie.runtime.audio.embeddings import prepend_audio
from edgetie.runtime.in_memory_graph import EXTERNAL_DATA_FOLDER, read_graph, remove_last_token_node

_PIECE_BYTES = 48 << 20  # weights of a piece
_CHANGE = 1e-4  # of the largest logit: more than rounding makes
_WINDOW = 256  # tokens of one run: keeps the recorded activations small
_SMALLEST_WINDOW = 16
_UNKNOWN = onnx.TensorProto.FLOAT  # the type of what does not tell
_DTYPES = {"tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Input:
    """What a model is calibrated on.

    Attributes:
        tokens: a text, read in windows of 256 tokens.
        clips: what an encoder reads of sounds, for one that hears.
        feeds: the model's inputs themselves, by name, run by run; then the others are not used.
            Inputs of a cache may be left out.
        prefix: special tokens in front of each window.
        suffix: those behind it, which decoders are not given.
    """

    tokens: Sequence[int] = ()
    clips: Sequence[Feeds] = ()
    feeds: Sequence[Feeds] = ()
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()


def record(
    bundle: Bundle, model_path: Path, names: Sequence[str], given: Input
) -> Iterator[tuple[str, Array, bool]]:
    """Activations by name, each as often as there are windows, and whether it is the last of that
    name.

    Args:
        bundle: it may limit the length of a sequence, and have an encoder that is run first.
        model_path: a model with ``input_ids``, ``attention_mask`` and perhaps a KV cache.
        names: values of the graph.
        given: what to run it on.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    try:
        graph, folder = remove_last_token_node(model_path) or read_graph(model_path)
        feeds = _runs(graph, given) or _windows(bundle, model_path, graph, given)
        for piece in _pieces(graph, names, model_path):
            _declare(piece.model.graph, feeds[0])
            session = _open(piece.model, folder)
            live: list[Feeds] = []
            for index, window in enumerate(feeds):
                results = session.run(piece.outputs, _chosen(session, window))
                made = dict(zip(piece.outputs, results, strict=True))
                last = index == len(feeds) - 1
                for name, known in piece.recorded.items():
                    yield name, made[known], last
                kept = {name: array for name, array in made.items() if name in piece.live}
                live.append({n: a for n, a in window.items() if n in piece.passed} | kept)
                del made, results
            feeds = live
            del session  # and its mapping of the weights
    except QuantizeError:
        raise
    except Exception as error:
        raise QuantizeError(f"{model_path}: calibration cannot run it ({error})") from error


def as_rows(values: Array) -> Array:
    """Activations ``(…, channels)`` as ``(tokens, channels)``."""
    return values.reshape(-1, values.shape[-1])


def is_bidirectional(model_path: Path) -> bool:
    """Whether what a model says at a token changes with the tokens behind it: it fills in masks.

    A model that cannot be run, or keeps a cache, or says nothing at all tokens, does not.
    """
    graph, folder = read_graph(model_path)
    inputs = _signature(graph)
    if any(name.startswith("past_") for name in inputs):
        return False
    one, other = np.array([[5, 6, 7, 8]]), np.array([[5, 6, 7, 9]])
    try:
        session = _open(graph, folder, packed=False)
        (first,), (second,) = (
            session.run(["logits"], _feeds(inputs, ids, {})) for ids in (one, other)
        )
    except Exception:  # pybind11 classes without a common base
        return False
    if first.shape[:2] != one.shape:
        return False
    return bool(np.abs(first - second)[:, :-1].max() > _CHANGE * np.abs(first).max())


@dataclass(frozen=True)
class _Piece:
    """Some nodes of a graph in a row.

    Attributes:
        model: they alone.
        outputs: what it is asked for.
        recorded: values to record, and the outputs that they are.
        live: outputs that later pieces read.
        passed: inputs of this piece, or earlier ones, that later pieces read.
    """

    model: onnx.ModelProto
    outputs: list[str]
    recorded: dict[str, str]
    live: set[str]
    passed: set[str]


def _pieces(model: onnx.ModelProto, names: Sequence[str], path: Path) -> Iterator[_Piece]:
    """A graph up to ``names``, in pieces."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    known = {name: name for name in names}
    if not made.issuperset(names):  # what was made of the last tokens is made of every token
        whole = onnx.load(str(path), load_external_data=False).graph
        selection = next((n for n in whole.node if n.name == LAST_TOKEN_NODE), None)
        known = {n: n if n in made or selection is None else selection.input[0] for n in names}
    _keep_only(graph, list(known.values()))
    bytes_of = {t.name: _bytes(t) for t in graph.initializer}
    groups: list[list[onnx.NodeProto]] = [[]]
    size = 0
    for node in graph.node:
        size += sum(bytes_of.get(n, 0) for n in node.input if node.op_type != "Gather")
        groups[-1].append(node)
        if size > _PIECE_BYTES:
            groups.append([])
            size = 0
    reads = [{name for node in group for name in _inputs(node)} for group in groups]
    inputs = {value.name: value for value in graph.input}
    for index, group in enumerate(groups):
        if not group:
            continue
        later = set().union(*reads[index + 1 :])
        own = {name for node in group for name in node.output if name}
        recorded = {name: value for name, value in known.items() if value in own}
        live = own & later
        outputs = sorted({*recorded.values(), *live})
        piece = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        piece.functions.extend(model.functions)
        piece.graph.name = graph.name
        piece.graph.node.extend(group)
        piece.graph.initializer.extend(t for t in graph.initializer if t.name in reads[index])
        needed = sorted(reads[index] - own - bytes_of.keys())
        piece.graph.input.extend(inputs.get(n) or onnx.ValueInfoProto(name=n) for n in needed)
        piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        yield _Piece(piece, outputs, recorded, live, later - bytes_of.keys())


def _declare(graph: onnx.GraphProto, feeds: Feeds) -> None:
    """Give inputs that are other pieces' outputs the types of what is fed."""
    for value in graph.input:
        if not value.HasField("type"):
            kind = onnx.helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
            value.type.tensor_type.elem_type = kind


def _inputs(node: onnx.NodeProto) -> list[str]:
    """What a node reads, its subgraphs included, but for what these make themselves."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own.update(name for child in graph.node for name in child.output)
            read = [name for child in graph.node for name in _inputs(child)]
            read += [value.name for value in graph.output]
            found += [name for name in read if name not in own]
    return found


def _bytes(tensor: onnx.TensorProto) -> int:
    return 4 * math.prod(int(size) for size in tensor.dims)


def _keep_only(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Make ``outputs`` the graph's outputs and drop the nodes that they do not need."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_inputs(node))
    del graph.output[:], graph.node[:]
    graph.node.extend(reversed(kept))
    unused = [tensor for tensor in graph.initializer if tensor.name not in needed]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _open(model: onnx.ModelProto, folder: Path, *, packed: bool = True) -> Any:
    """A session over a graph whose weights lie in ``folder``, copied in a faster form if so."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised, once is enough
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(folder))
    options.add_session_config_entry("session.disable_prepacking", "0" if packed else "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _chosen(session: Any, feeds: Feeds) -> Feeds:
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def _runs(model: onnx.ModelProto, given: Input) -> list[Feeds]:
    """What was given for each run, and empty caches."""
    inputs = _signature(model)
    for feeds in given.feeds:
        unknown = sorted(feeds.keys() - inputs.keys())
        missing = sorted(n for n in inputs.keys() - feeds.keys() if not n.startswith("past_"))
        if unknown or missing:
            what = f"{unknown[0]} is no input" if unknown else f"input {missing[0]} is missing"
            raise QuantizeError(f"calibration inputs: {what} of the model ({', '.join(inputs)})")
    return [_feeds(inputs, np.zeros((1, 1), np.int64), dict(feeds)) for feeds in given.feeds]


def _windows(bundle: Bundle, model_path: Path, model: onnx.ModelProto, given: Input) -> list[Feeds]:
    """What the model reads of each window of the text, or of each sound."""
    limit = bundle.manifest.signature.max_positions
    window = min(_WINDOW, limit or _WINDOW)
    if bundle.is_bare:
        window = _usable(model, model_path.parent, window)
    first = bundle.model_paths[0]
    encoder = None
    if first != model_path:
        encoder = _open(*read_graph(first))
    clips = given.clips
    suffix = () if bundle.task == "causal-lm" else given.suffix
    texts = [ids[None] for ids in windows(given.tokens, window, given.prefix, suffix)]
    made = []
    for index in range(len(clips) if clips and encoder is None else len(texts)):
        ids = texts[index % len(texts)]
        clip = clips[index % len(clips)] if clips else {}
        known = clip if encoder is None else _encoded(encoder, ids, clip)
        if AUDIO in known and not bundle.is_bare:
            token = bundle.manifest.signature.audio_token_id
            ids, known[AUDIO] = prepend_audio(ids, known[AUDIO], token, ids.shape[1])
            ids = ids[:, :limit]
        made.append(_feeds(_signature(model), ids, known))
    return made


def _usable(model: onnx.ModelProto, folder: Path, window: int) -> int:
    """A number of tokens, halved until a model that does not tell takes them."""
    session, inputs = _open(model, folder, packed=False), _signature(model)
    while window > _SMALLEST_WINDOW:
        try:
            session.run(None, _feeds(inputs, np.zeros((1, window), np.int64), {}))
        except Exception:  # pybind11 classes without a common base
            window //= 2
        else:
            break
    return window


@dataclass(frozen=True)
class _Empty:
    """An input of a graph; ``None`` where a dimension is symbolic."""

    shape: list[int | None]
    dtype: np.dtype[Any]


def _signature(model: onnx.ModelProto) -> dict[str, _Empty]:
    """What must be fed: inputs with an initializer need not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: _Empty(
            [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or _UNKNOWN),
        )
        for value in model.graph.input
        if value.name not in weights
    }


def _encoded(encoder: Any, ids: Array, clip: Feeds) -> Feeds:
    """What an encoder makes, for the decoder, of a sound; or else of the text that both read."""
    names = [value.name for value in encoder.get_outputs()]
    inputs = {
        value.name: _Empty(
            [d if isinstance(d, int) else None for d in value.shape],
            np.dtype(_DTYPES.get(value.type, np.float32)),
        )
        for value in encoder.get_inputs()
    }
    results = encoder.run(names, _feeds(inputs, ids, clip))
    made = {
        name.replace("present.", "past_key_values.", 1): result
        for name, result in zip(names, results, strict=True)
    }
    return made | {"encoder_attention_mask": np.ones_like(ids)}


def _feeds(inputs: dict[str, _Empty], ids: Array, given: Feeds) -> Feeds:
    """One window of tokens, nothing cached but what is given."""
    ids = given.get("input_ids", ids)
    feeds: Feeds = {}
    for name, value in inputs.items():
        if name in given:
            feeds[name] = given[name]
        elif name == "input_ids":
            feeds[name] = ids.astype(value.dtype)
        elif name == "attention_mask":
            feeds[name] = np.ones(ids.shape, value.dtype)
        elif name == "position_ids":
            feeds[name] = np.arange(ids.shape[1], dtype=value.dtype)[None]
        elif name == "token_type_ids":
            feeds[name] = np.zeros(ids.shape, value.dtype)
        else:
            shape = [len(ids) if axis == 0 else d or 0 for axis, d in enumerate(value.shape)]
            feeds[name] = np.zeros(shape, value.dtype)
    return feeds
