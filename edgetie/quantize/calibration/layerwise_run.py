"""Run a model a few layers at a time and return some of its activations.

Each segment of the graph runs over all windows of the text before the next one starts, on the
outputs of the one before, so that only one segment's weights are in memory.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import AUDIO, ENCODER_MASK, GRID, IMAGE, LAST_TOKEN_NODE
from edgetie.errors import QuantizeError
from edgetie.graph.matching import weight
from edgetie.graph.tensors import PAST, PRESENT
from edgetie.harness.accuracy.samples import windows
from edgetie.runtime.audio.embeddings import prepend_audio
from edgetie.runtime.images.embeddings import ImageEmbeddings, prepend_images
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
        media: inputs of an encoder of audio or images, one dict for each clip or image.
        feeds: the caller's own inputs by name, for each run, instead of tokens and media.
        prefix: special tokens before each window.
        suffix: special tokens after each window, which decoders do not read.
    """

    tokens: Sequence[int] = ()
    media: Sequence[Feeds] = ()
    feeds: Sequence[Feeds] = ()
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()


@dataclass(frozen=True)
class Activation:
    """A value of the graph in one window, and whether it is the last window."""

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
    """Run a model of a bundle and yield each of the named activations once for each window.

    Raises:
        QuantizeError: if the model cannot be run on the CPU.
    """
    try:
        graph, folder = remove_last_token_node(model_path) or read_graph(model_path)
        model = ir.from_proto(graph)
        feeds = _own_feeds(model, inputs)
        feeds = feeds or _window_feeds(bundle, model_path, (model, folder), inputs)
        for segment in _segments(model, names, model_path):
            for value in segment.model.graph.inputs:
                dtype = ir.DataType.from_numpy(feeds[0][str(value.name)].dtype)
                value.type = value.type or ir.TensorType(dtype)
            session = _open_session(segment.model, folder)
            later: list[Feeds] = []
            for index, window in enumerate(feeds):
                outputs = _run(session, window)
                for name, output in segment.activations.items():
                    yield Activation(name, outputs[output], index == len(feeds) - 1)
                values = window | outputs
                later.append({name: a for name, a in values.items() if name in segment.read_later})
                del outputs, values
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
    model = ir.from_proto(graph)
    inputs = _graph_inputs(model)
    if any(name.startswith("past_") for name in inputs):
        return False
    batches = np.array([[5, 6, 7, 8]]), np.array([[5, 6, 7, 9]])
    try:
        session = _open_session(model, folder, prepack=False)
        first, second = (_run(session, _complete(inputs, ids, {}))["logits"] for ids in batches)
    except Exception:  # pybind11 classes without a common base
        logger.debug("%s: cannot be run, taken for a decoder", model_path, exc_info=True)
        return False
    if first.shape[:2] != batches[0].shape:
        return False
    return bool(np.abs(first - second)[:, :-1].max() > _DIFFERENCE * np.abs(first).max())


@dataclass(frozen=True)
class _Segment:
    """Consecutive nodes of a graph, which output of theirs each activation is, and the names of the
    values that later segments read.
    """

    model: ir.Model
    activations: dict[str, str]
    read_later: set[str]


def _segments(model: ir.Model, names: Sequence[str], path: Path) -> Iterator[_Segment]:
    """Cut the part of a graph that computes ``names``."""
    computed = {value.name for node in model.graph for value in node.outputs}
    output_of = {name: name for name in names}
    if not computed.issuperset(names):  # the last token's values were replaced by all tokens'
        for node in read_graph(path)[0].graph.node:
            if node.name == LAST_TOKEN_NODE and node.output[0] in output_of:
                output_of[node.output[0]] = node.input[0]
    output_of = {name: output for name, output in output_of.items() if output in computed}
    if not output_of:
        return
    inputs, outputs = model.graph.inputs, sorted({*output_of.values()})
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    groups: list[list[ir.Node]] = [[]]
    size = 0
    for node in graph:
        tensors = [weight(value) for value in node.inputs if node.op_type != "Gather"]
        size += sum(4 * tensor.size for tensor in tensors if tensor is not None)
        groups[-1].append(node)
        if size > _SEGMENT_BYTES:
            groups.append([])
            size = 0
    reads = [_values_read(graph, group) for group in groups]
    for index, group in enumerate(filter(None, groups)):
        later: set[ir.Value] = set().union(*reads[index + 1 :])
        own = {value for node in group for value in node.outputs}
        activations = {name: each for name, each in output_of.items() if each in _names(own)}
        outputs = sorted({*activations.values(), *_names(own & later)})
        inputs = sorted(reads[index] - own, key=lambda value: str(value.name))
        segment = ir.convenience.extract(graph, inputs, outputs)
        functions = list(model.functions.values())
        segment_model = ir.Model(segment, ir_version=model.ir_version, functions=functions)
        yield _Segment(segment_model, activations, _names(later))


def _values_read(graph: ir.Graph, nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Return the values of a graph that nodes and their subgraphs read, except weights."""
    nodes_of_all_graphs = ir.traversal.RecursiveGraphIterator(ir.GraphView([], [], nodes=nodes))
    values = {value for node in nodes_of_all_graphs for value in node.inputs}
    return {v for v in values if v is not None and v.graph is graph and not v.is_initializer()}


def _names(values: Iterable[ir.Value]) -> set[str]:
    return {str(value.name) for value in values}


def _open_session(model: ir.Model, folder: Path, *, prepack: bool = True) -> Any:
    """Open a session for a graph whose weights are in ``folder``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed too
    options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(folder))
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"],
        enable_fallback=0,
    )  # fmt: skip


def _run(session: Any, values: Feeds) -> Feeds:
    """Run a session on those values that it reads, and return its outputs by name."""
    names = [output.name for output in session.get_outputs()]
    feeds = {each.name: values[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def _own_feeds(model: ir.Model, inputs: CalibrationInput) -> list[Feeds]:
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
    bundle: Bundle, model_path: Path, graph: tuple[ir.Model, Path], inputs: CalibrationInput
) -> list[Feeds]:
    """Make the feeds of each window of the text, or of each audio clip or image.

    ``graph`` is the model and the folder of its weights.
    """
    model, weights_folder = graph
    signature, expected = bundle.manifest.signature, _graph_inputs(model)
    limit = signature.max_positions
    length = min(_WINDOW, limit or _WINDOW)
    if bundle.is_bare:
        length = _accepted_length(model, weights_folder, length)
    encoder_path = bundle.model_paths[0]
    has_encoder = encoder_path != model_path
    if has_encoder:
        encoder_graph, encoder_folder = read_graph(encoder_path)
        encoder = ir.from_proto(encoder_graph)
        session = _open_session(encoder, encoder_folder)
    suffix = () if bundle.task == "causal-lm" else inputs.suffix
    texts = [ids[None] for ids in windows(inputs.tokens, length, inputs.prefix, suffix)]
    result = []
    for index in range(len(texts) if has_encoder or not inputs.media else len(inputs.media)):
        ids = texts[index % len(texts)]
        feeds = media = dict(inputs.media[index % len(inputs.media)]) if inputs.media else {}
        if has_encoder:
            states = _run(session, _complete(_graph_inputs(encoder), ids, feeds))
            feeds = {n.replace(f"{PRESENT}.", f"{PAST}.", 1): each for n, each in states.items()}
            feeds[ENCODER_MASK] = media.get("attention_mask", np.ones_like(ids))
        if AUDIO in feeds:
            ids, feeds[AUDIO] = prepend_audio(
                ids, feeds[AUDIO], signature.audio_token_id, ids.shape[1]
            )
            ids = ids[:, :limit]
        if IMAGE in feeds and (token := signature.image_token_id) is not None:
            images = ImageEmbeddings(states, media.get(GRID, np.zeros((0, 3), np.int64)))
            text = ids[:, : limit and max(1, limit - images.count)]
            ids = prepend_images(text, images, token)
            if len(images.grids):
                feeds["position_ids"] = images.positions(ids[0], token)[:, None]
        result.append(_complete(expected, ids, feeds))
    return result


def _accepted_length(model: ir.Model, folder: Path, length: int) -> int:
    """Halve a number of tokens until a model without a manifest accepts it."""
    session, inputs = _open_session(model, folder, prepack=False), _graph_inputs(model)
    while length > _SMALLEST_WINDOW:
        try:
            _run(session, _complete(inputs, np.zeros((1, length), np.int64), {}))
        except Exception:  # pybind11 classes without a common base
            logger.debug("%d tokens are too many for the model", length, exc_info=True)
            length //= 2
        else:
            break
    return length


def _graph_inputs(model: ir.Model) -> dict[str, ir.Value]:
    """Return the inputs that must be fed, which those with an initializer need not."""
    return {str(each.name): each for each in model.graph.inputs if not each.is_initializer()}


def _complete(inputs: Mapping[str, ir.Value], ids: Array, arrays: Feeds) -> Feeds:
    """Make the feeds of one window: known arrays, ``ids``, and an empty cache."""
    ids = arrays.get("input_ids", ids)
    defaults = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[-1])[None],
        "token_type_ids": np.zeros_like(ids),
    }
    feeds: Feeds = {}
    for name, value in inputs.items():
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        shape = [size if isinstance(size, int) else 0 for size in value.shape or ()]
        empty = np.zeros([len(ids), *shape[1:]] if shape else [], dtype)
        feeds[name] = arrays.get(name, np.asarray(defaults.get(name, empty), dtype))
    return feeds
