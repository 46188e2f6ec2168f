"""Run a model a few layers at a time and return some of its activations.

The graph is cut into segments whose weights have a limited size. Each segment runs over all windows
of the text before the next one starts, on the outputs of the one before, so that only one segment's
weights are in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import AUDIO, ENCODER_MASK, LAST_TOKEN_NODE
from edgetie.errors import QuantizeError
from edgetie.graph.tensors import PAST, PRESENT
from edgetie.harness.accuracy.samples import windows
from edgetie.runtime.audio.embeddings import prepend_audio
from edgetie.runtime.in_memory_graph import EXTERNAL_DATA_FOLDER, read_graph, remove_last_token_node

_SEGMENT_BYTES = 48 << 20  # weights of a segment
_DIFFERENCE = 1e-4  # of the largest logit: more than float32 arithmetic differs by
_WINDOW = 256  # tokens of one run: keeps activations small
_SMALLEST_WINDOW = 16

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationInput:
    """What a model is calibrated on.

    Attributes:
        tokens: a text, read in windows of 256 tokens.
        audio: inputs of an audio encoder, one dict for each audio clip.
        feeds: inputs of the model by name, one dict for each run. If there are any, tokens and
            audio are not used. Inputs of a KV cache may be missing.
        prefix: special tokens before each window.
        suffix: special tokens after each window, which decoders do not read.
    """

    tokens: Sequence[int] = ()
    audio: Sequence[Feeds] = ()
    feeds: Sequence[Feeds] = ()
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()


@dataclass(frozen=True)
class Activation:
    """A value of the graph in one window.

    Attributes:
        name: of the value.
        array: ``(batch, sequence, channels)`` or what shape it has.
        is_last: whether no later window follows for this name.
    """

    name: str
    array: Array
    is_last: bool

    @property
    def tokens(self) -> Array:
        """Return the array as ``(tokens, channels)``."""
        return self.array.reshape(-1, self.array.shape[-1])


def run_layerwise(
    bundle: Bundle, model_path: Path, names: Sequence[str], inputs: CalibrationInput
) -> Iterator[Activation]:
    """Run a model and yield each of the named activations once for each window.

    Args:
        bundle: it may limit the length of a sequence, and have an encoder that runs first.
        model_path: a model with ``input_ids``, ``attention_mask`` and perhaps a KV cache.
        names: values of the graph.
        inputs: what to run it on.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    try:
        graph, folder = remove_last_token_node(model_path) or read_graph(model_path)
        feeds = _own_feeds(graph, inputs) or _window_feeds(bundle, model_path, graph, inputs)
        for segment in _segments(graph, names, model_path):
            _declare_types(segment.model.graph, feeds[0])
            session = _open_session(segment.model, folder)
            read = [value.name for value in session.get_inputs()]
            later: list[Feeds] = []
            for index, window in enumerate(feeds):
                results = session.run(segment.outputs, {name: window[name] for name in read})
                outputs = dict(zip(segment.outputs, results, strict=True))
                for name, output in segment.activations.items():
                    yield Activation(name, outputs[output], index == len(feeds) - 1)
                values = window | outputs
                later.append({name: a for name, a in values.items() if name in segment.read_later})
                del outputs, results, values
            feeds = later
            del session  # and its mapping of the weights
    except QuantizeError:
        raise
    except Exception as error:
        raise QuantizeError(f"{model_path}: calibration cannot run it ({error})") from error


def is_bidirectional(model_path: Path) -> bool:
    """Tell whether a token's logits depend on later tokens, as those of masked models do.

    It is not if the model cannot be run, has a KV cache, or returns logits of the last token only.
    """
    graph, folder = read_graph(model_path)
    inputs = _graph_inputs(graph)
    if any(name.startswith("past_") for name in inputs):
        return False
    batches = np.array([[5, 6, 7, 8]]), np.array([[5, 6, 7, 9]])
    try:
        session = _open_session(graph, folder, prepack=False)
        (first,), (second,) = (
            session.run(["logits"], _complete(inputs, ids, {})) for ids in batches
        )
    except Exception:  # pybind11 classes without a common base
        logger.debug("%s: cannot be run, taken for a decoder", model_path, exc_info=True)
        return False
    if first.shape[:2] != batches[0].shape:
        return False
    return bool(np.abs(first - second)[:, :-1].max() > _DIFFERENCE * np.abs(first).max())


@dataclass(frozen=True)
class _Segment:
    """Consecutive nodes of a graph.

    Attributes:
        model: these nodes alone.
        outputs: names of its outputs.
        activations: the output that each wanted activation is, by the activation's name.
        read_later: names of values that later segments read.
    """

    model: onnx.ModelProto
    outputs: list[str]
    activations: dict[str, str]
    read_later: set[str]


def _segments(model: onnx.ModelProto, names: Sequence[str], path: Path) -> Iterator[_Segment]:
    """Cut the part of a graph that computes ``names``."""
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    output_of = {name: name for name in names}
    if not computed.issuperset(names):  # the last tokens' values were replaced by all tokens'
        whole = onnx.load(str(path), load_external_data=False).graph
        last = next((node for node in whole.node if node.name == LAST_TOKEN_NODE), None)
        output_of = {n: n if n in computed or last is None else last.input[0] for n in names}
    _prune(graph, list(output_of.values()))
    weights = {tensor.name: 4 * math.prod(map(int, tensor.dims)) for tensor in graph.initializer}
    groups: list[list[onnx.NodeProto]] = [[]]
    size = 0
    for node in graph.node:
        size += sum(weights.get(name, 0) for name in node.input if node.op_type != "Gather")
        groups[-1].append(node)
        if size > _SEGMENT_BYTES:
            groups.append([])
            size = 0
    reads = [{name for node in group for name in _names_read(node)} for group in groups]
    inputs = {value.name: value for value in graph.input}
    for index, group in enumerate(groups):
        if not group:
            continue
        later = set().union(*reads[index + 1 :])
        own = {name for node in group for name in node.output if name}
        activations = {name: output for name, output in output_of.items() if output in own}
        outputs = sorted({*activations.values(), *(own & later)})
        segment = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        segment.functions.extend(model.functions)
        segment.graph.name = graph.name
        segment.graph.node.extend(group)
        segment.graph.initializer.extend(t for t in graph.initializer if t.name in reads[index])
        needed = sorted(reads[index] - own - weights.keys())
        segment.graph.input.extend(inputs.get(n) or onnx.ValueInfoProto(name=n) for n in needed)
        segment.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        yield _Segment(segment, outputs, activations, later - weights.keys())


def _declare_types(graph: onnx.GraphProto, feeds: Feeds) -> None:
    """Give inputs that earlier segments compute the types of what is fed."""
    for value in graph.input:
        if not value.HasField("type"):
            dtype = onnx.helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
            value.type.tensor_type.elem_type = dtype


def _names_read(node: onnx.NodeProto) -> list[str]:
    """Names of the values that a node and its subgraphs read from the graph around it."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own.update(name for child in graph.node for name in child.output)
            read = [name for child in graph.node for name in _names_read(child)]
            read += [value.name for value in graph.output]
            names += [name for name in read if name not in own]
    return names


def _prune(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    """Make ``outputs`` the graph's outputs and drop what they do not need."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_names_read(node))
    del graph.output[:], graph.node[:]
    graph.node.extend(reversed(nodes))
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)


def _open_session(model: onnx.ModelProto, folder: Path, *, prepack: bool = True) -> Any:
    """Open a session for a graph whose weights are in ``folder``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(folder))
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _own_feeds(model: onnx.ModelProto, inputs: CalibrationInput) -> list[Feeds]:
    """Check the caller's own feeds and add empty caches."""
    expected = _graph_inputs(model)
    for feeds in inputs.feeds:
        unknown = sorted(feeds.keys() - expected.keys())
        missing = sorted(n for n in expected.keys() - feeds.keys() if not n.startswith("past_"))
        if unknown or missing:
            what = f"{unknown[0]} is not an input" if unknown else f"input {missing[0]} is missing"
            names = ", ".join(expected)
            raise QuantizeError(f"{what} of the model ({names})", parameter="calibration")
    return [_complete(expected, np.zeros((1, 1), np.int64), feeds) for feeds in inputs.feeds]


def _window_feeds(
    bundle: Bundle, model_path: Path, model: onnx.ModelProto, inputs: CalibrationInput
) -> list[Feeds]:
    """Make the feeds of each window of the text, or of each audio clip."""
    signature, expected = bundle.manifest.signature, _graph_inputs(model)
    limit = signature.max_positions
    length = min(_WINDOW, limit or _WINDOW)
    if bundle.is_bare:
        length = _accepted_length(model, model_path.parent, length)
    encoder_path = bundle.model_paths[0]
    has_encoder = encoder_path != model_path
    if has_encoder:
        encoder, folder = read_graph(encoder_path)
        session = _open_session(encoder, folder)
    suffix = () if bundle.task == "causal-lm" else inputs.suffix
    texts = [ids[None] for ids in windows(inputs.tokens, length, inputs.prefix, suffix)]
    result = []
    for index in range(len(texts) if has_encoder or not inputs.audio else len(inputs.audio)):
        ids = texts[index % len(texts)]
        feeds = dict(inputs.audio[index % len(inputs.audio)]) if inputs.audio else {}
        if has_encoder:
            feeds = _run_encoder(session, _complete(_graph_inputs(encoder), ids, feeds))
            feeds[ENCODER_MASK] = np.ones_like(ids)
        if AUDIO in feeds:
            ids, feeds[AUDIO] = prepend_audio(
                ids, feeds[AUDIO], signature.audio_token_id, ids.shape[1]
            )
            ids = ids[:, :limit]
        result.append(_complete(expected, ids, feeds))
    return result


def _run_encoder(session: Any, feeds: Feeds) -> Feeds:
    """Return an encoder's outputs by the names that the decoder reads them by."""
    names = [value.name for value in session.get_outputs()]
    results = session.run(names, feeds)
    decoder_names = [name.replace(f"{PRESENT}.", f"{PAST}.", 1) for name in names]
    return dict(zip(decoder_names, results, strict=True))


def _accepted_length(model: onnx.ModelProto, folder: Path, length: int) -> int:
    """Halve a number of tokens until a model without a manifest accepts it."""
    session, inputs = _open_session(model, folder, prepack=False), _graph_inputs(model)
    while length > _SMALLEST_WINDOW:
        try:
            session.run(None, _complete(inputs, np.zeros((1, length), np.int64), {}))
        except Exception:  # pybind11 classes without a common base
            logger.debug("%d tokens are too many for the model", length, exc_info=True)
            length //= 2
        else:
            break
    return length


@dataclass(frozen=True)
class _GraphInput:
    """An input of a graph; symbolic dimensions are 0."""

    shape: list[int]
    dtype: np.dtype[Any]


def _graph_inputs(model: onnx.ModelProto) -> dict[str, _GraphInput]:
    """Describe the inputs that must be fed, which those with an initializer need not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: _GraphInput(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(
                value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
            ),
        )
        for value in model.graph.input
        if value.name not in weights
    }


def _complete(inputs: dict[str, _GraphInput], ids: Array, known: Feeds) -> Feeds:
    """Make the feeds of one window: known arrays, ``ids``, and an empty cache."""
    ids = known.get("input_ids", ids)
    feeds: Feeds = {}
    for name, value in inputs.items():
        if name in known:
            feeds[name] = known[name]
        elif name == "input_ids":
            feeds[name] = ids.astype(value.dtype)
        elif name == "attention_mask":
            feeds[name] = np.ones(ids.shape, value.dtype)
        elif name == "position_ids":
            feeds[name] = np.arange(ids.shape[1], dtype=value.dtype)[None]
        elif name == "token_type_ids":
            feeds[name] = np.zeros(ids.shape, value.dtype)
        else:
            shape = [len(ids) if axis == 0 else size for axis, size in enumerate(value.shape)]
            feeds[name] = np.zeros(shape, value.dtype)
    return feeds
