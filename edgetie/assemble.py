"""Turn a directory of ONNX files into a bundle, if it is certain what model they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.encoder_decoder import EncoderDecoder, UnknownFormError, read_encoder_decoder
from edgetie.bundle.manifest import Manifest, bare_manifest, onnx_manifest, write_manifest
from edgetie.bundle.merged_decoder import HIDDEN, USE_CACHE, write_merged
from edgetie.bundle.model_config import read_json, read_token_ids
from edgetie.bundle.names import (
    CONFIG,
    CONFIGURATIONS,
    DECODER,
    ENCODER,
    ENCODER_MASK,
    MODEL,
    PREPROCESSOR,
    PROCESSOR,
    SPEECH,
)
from edgetie.errors import summarize
from edgetie.graph.external_data import byte_range
from edgetie.graph.matching import last_dimension, operator, rank
from edgetie.graph.model_files import load_model
from edgetie.graph.tensors import PAST, PRESENT
from edgetie.harness.accuracy.thresholds import precision_of
from edgetie.quantize.calibration.layerwise_run import is_bidirectional
from edgetie.runtime.text.tokenizer import TOKENIZER_FILES
from edgetie.ties.groups import all_initializers, find_shared_ties, share_across

_TOKENS, _PREFIX, _SOURCE = 6, 2, 8  # compared with the files that a decoder was made of
_IDS = 4, 16  # tokens of every vocabulary; below are padding and the like
_TOLERANCE = 1e-4  # of the largest logit: the same sums in another order
_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
_AUDIO_INPUTS = ("input_features", "input_values")
_SETTINGS = (*TOKENIZER_FILES, *CONFIGURATIONS, PREPROCESSOR, PROCESSOR)

Array = np.ndarray[Any, Any]


def assemble_bundle(directory: Path, folders: Iterable[Path], name: str) -> str:
    """Turn ONNX files that share ``model.onnx.data`` into a bundle, in place.

    Args:
        directory: where the files are, alone: one model, or an encoder and its decoders.
        folders: directories whose settings and tokenizer files are copied.
        name: the source's, for the manifest.

    Returns:
        The task of the model.

    Raises:
        UnknownFormError: if it is not certain what they are. They stay as they are then.
        BundleError: if a configuration is damaged.
    """
    paths = sorted(directory.glob("*.onnx"))
    if len(paths) == 1:
        task = _task_of(paths[0])
        paths[0].rename(directory / MODEL)
        models = {MODEL: load_model(directory / MODEL)}
    else:
        models, task = _write_encoder_decoder(directory, paths)
    for folder in folders:
        copy_settings(folder, directory)
    if ENCODER in models:
        write_merged(directory)
    write_manifest(directory, _make_manifest(directory, models, task, name))
    return task


def copy_settings(folder: Path, directory: Path) -> None:
    """Copy configuration, tokenizer and audio settings that stand next to an ONNX file."""
    for name in _SETTINGS:
        if (folder / name).is_file() and not (directory / name).exists():
            shutil.copyfile(folder / name, directory / name)


def _task_of(path: Path) -> str:
    """Detect the task of a single file.

    Raises:
        UnknownFormError: if it is not a language model of tokens.
    """
    graph = load_model(path).graph
    inputs = {str(value.name) for value in graph.inputs}
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    if "input_ids" not in inputs or logits is None or rank(logits) != 3:
        raise UnknownFormError(f"{path.name} has no input_ids or no logits of every token")
    pasts = {name for name in inputs if name.startswith(f"{PAST}.") and ".encoder." not in name}
    if foreign := inputs - pasts - _INPUTS:
        raise UnknownFormError(f"{path.name} reads {min(foreign)}, which no single model does")
    if pasts:
        return "causal-lm"
    if last_dimension(logits) not in _table_rows(graph):  # such as the labels of a classifier
        raise UnknownFormError(f"no embedding table of {path.name} has a row for each logit")
    return "masked-lm" if is_bidirectional(path) else "causal-lm"


def _table_rows(graph: ir.Graph) -> set[int]:
    tables = [node.inputs[0] for node in graph if operator(node) == "Gather"]
    shapes = [table.shape for table in tables if table is not None and table.is_initializer()]
    return {size for shape in shapes if shape is not None and isinstance(size := shape[0], int)}


def _write_encoder_decoder(directory: Path, paths: list[Path]) -> tuple[dict[str, ir.Model], str]:
    """Replace the files of an encoder-decoder model by a bundle's two, once these agree."""
    graphs = read_encoder_decoder(paths)
    first, *masks = graphs.encoder.graph.inputs
    decoder_inputs = {value.name for value in graphs.decoder.graph.inputs}
    if first.name not in ("input_ids", *_AUDIO_INPUTS):
        raise UnknownFormError(f"the encoder reads {first.name}, neither tokens nor audio")
    task = SPEECH if first.name in _AUDIO_INPUTS else "seq2seq-lm"
    if len(masks) != (ENCODER_MASK in decoder_inputs):
        raise UnknownFormError(f"not both of encoder and decoder read a mask ({ENCODER_MASK})")
    models = {ENCODER: graphs.encoder, DECODER: graphs.decoder}
    new = {name: directory / f"{name}.new" for name in models}
    share_across(models)  # names are the same in both graphs
    for name, model in models.items():
        ir.save(model, new[name])
    try:
        if graphs.first_path is not None:
            _require_agreement(graphs, new[ENCODER], new[DECODER])
    except BaseException:
        for path in new.values():
            path.unlink()
        raise
    for path in paths:
        path.unlink()
    for name, path in new.items():
        path.rename(directory / name)
    return {name: load_model(directory / name) for name in models}, task


def _require_agreement(graphs: EncoderDecoder, encoder_path: Path, decoder_path: Path) -> None:
    """Compare the new graphs with the old ones, for several tokens at once and in two steps.

    Raises:
        UnknownFormError: if logits differ, or a graph cannot be run. A decoder for later tokens
            may be right only for one token at a time, or only after others.
    """
    assert graphs.first_path is not None
    random = np.random.default_rng(0)
    try:
        encoder = _session(graphs.encoder_path)
        feeds = _example(encoder, random)
        hidden = encoder.run(["last_hidden_state"], feeds)[0]
        mask = feeds.get("attention_mask")
        tokens = random.integers(*_IDS, (len(hidden), _TOKENS))
        first = _session(graphs.first_path)
        cache = _empty_cache(first)
        expected = _logits(
            first, tokens, mask, cache | {HIDDEN: hidden, USE_CACHE: np.array([False])}
        )
        encoder = _session(encoder_path)
        outputs = _by_name(encoder, encoder.run(None, feeds))
        decoder = _session(decoder_path)
        cross = {_past(name): array for name, array in outputs.items() if name.startswith(PRESENT)}
        cache = _empty_cache(decoder) | cross
        whole = _logits(decoder, tokens, mask, cache)
        parts = [_logits(decoder, tokens[:, :_PREFIX], mask, cache)]
        parts.append(_logits(decoder, tokens[:, _PREFIX:], mask, cross | _pasts(parts[0])))
    except Exception as error:  # pybind11 classes without a common base
        raise UnknownFormError(f"the decoders cannot be joined ({summarize(error)})") from error
    steps = np.concatenate([part["logits"] for part in parts], axis=1)
    for logits in (whole["logits"], steps):
        difference = np.abs(logits - expected["logits"]).max() / np.abs(expected["logits"]).max()
        if not difference < _TOLERANCE:
            raise UnknownFormError(
                f"the decoder with a cache computes other logits than {graphs.first_path.name} for "
                f"several tokens (by {difference:.1e} of the largest), so it reads one at a time"
            )


def _session(path: Path) -> Any:
    """Start a session whose weights stay in the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _example(session: Any, random: np.random.Generator) -> dict[str, Array]:
    """Make two inputs of an encoder, the second one padded if it has a mask."""
    first, *others = session.get_inputs()
    shape = [2, *(s if isinstance(s, int) else _SOURCE for s in first.shape[1:])]
    if first.name != "input_ids":
        return {first.name: random.normal(size=shape).astype(_dtype(first))}
    mask = np.ones(shape, np.int64)
    mask[1, _SOURCE // 2 :] = 0
    return {first.name: random.integers(*_IDS, shape)} | {value.name: mask for value in others}


def _dtype(value: Any) -> np.dtype[Any]:
    return np.dtype({"tensor(float16)": "float16"}.get(value.type, "float32"))


def _empty_cache(session: Any) -> dict[str, Array]:
    pasts = [value for value in session.get_inputs() if value.name.startswith(f"{PAST}.")]
    shapes = {v.name: [2, *(s if isinstance(s, int) else 0 for s in v.shape[1:])] for v in pasts}
    return {value.name: np.zeros(shapes[value.name], _dtype(value)) for value in pasts}


def _logits(
    session: Any, tokens: Array, mask: Array | None, others: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a decoder; returns all of its outputs."""
    feeds = {"input_ids": tokens, **others} | ({} if mask is None else {ENCODER_MASK: mask})
    names = {value.name for value in session.get_inputs()}
    return _by_name(session, session.run(None, {n: a for n, a in feeds.items() if n in names}))


def _by_name(session: Any, arrays: list[Array]) -> dict[str, Array]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, arrays, strict=True))


def _past(name: str) -> str:
    return name.replace(PRESENT, PAST, 1)


def _pasts(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {_past(name): array for name, array in outputs.items() if name != "logits"}


def _make_manifest(
    directory: Path, models: Mapping[str, ir.Model], task: str, name: str
) -> Manifest:
    bundle = open_bundle(directory / list(models)[-1])
    logits = next(v for v in models[bundle.model_path.name].graph.outputs if v.name == "logits")
    manifest = onnx_manifest(
        bundle.manifest,
        name,
        task=task,
        vocab_size=last_dimension(logits) or 0,
        parameters=_count_parameters(models),
    )
    manifest.precision = precision_of(bundle)
    manifest.weights_in_memory = "prepacked"
    settings, has_encoder = read_json(directory / CONFIG), ENCODER in models
    limit = settings.get("max_position_embeddings", settings.get("max_target_positions"))
    manifest.signature = replace(
        manifest.signature,
        max_positions=limit if isinstance(limit, int) and limit > 0 else None,
        **read_token_ids(directory, has_encoder=has_encoder),
    )
    if has_encoder:
        manifest.encoder = bare_manifest(directory / ENCODER).signature
    manifest.ties = find_shared_ties(models)
    return manifest


def _count_parameters(models: Mapping[str, ir.Model]) -> int:
    """Count float values, each byte range once."""
    sizes = {
        byte_range(value) or id(value): value.const_value.size
        for model in models.values()
        for value in all_initializers(model)
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    return sum(sizes.values())
