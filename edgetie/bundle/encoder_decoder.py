"""Convert the files of an encoder-decoder model by other exporters to the two of a bundle.

Others have a decoder for the first tokens, which computes keys and values of cross-attention from
the encoder's last hidden state, and one for later tokens, or both in one file behind
``use_cache_branch``. In a bundle the encoder computes them, and one decoder reads all tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.bundle.merged_decoder import HIDDEN, LAST_HIDDEN, USE_CACHE, read_from
from edgetie.bundle.names import ENCODER_MASK
from edgetie.errors import BundleError
from edgetie.graph.matching import producer, scalar
from edgetie.graph.model_files import load_model
from edgetie.graph.tensors import PAST, PRESENT

_CROSS = ".encoder."


class UnknownFormError(BundleError):
    """ONNX files are not certain to be a model that a bundle can hold."""


@dataclass(frozen=True)
class EncoderDecoder:
    """The two graphs of a bundle.

    Attributes:
        encoder: returns the last hidden state, and keys and values of cross-attention.
        decoder: reads tokens and the cache; returns logits and the cache of self-attention.
        encoder_path: the file of the encoder.
        first_path: the file of a decoder that reads the last hidden state; ``None`` if the files
            have a bundle's form already.
    """

    encoder: ir.Model
    decoder: ir.Model
    encoder_path: Path
    first_path: Path | None


def read_encoder_decoder(paths: list[Path]) -> EncoderDecoder:
    """Read the files of an encoder-decoder model, each of whose parts follows from its inputs.

    Raises:
        UnknownFormError: if they are not an encoder and its decoder, with a cache.
    """
    files: dict[str, Path] = {}
    for path in paths:
        files.setdefault(_part(load_model(path)), path)
    if "encoder" not in files:
        raise UnknownFormError(f"no file returns {LAST_HIDDEN} without logits, as encoders do")
    encoder, decoder_path = load_model(files["encoder"]), files.get("later", files.get("merged"))
    if decoder_path is None:
        raise UnknownFormError(
            f"no decoder reads {PAST}; name the one that does too (decoder_with_past_model.onnx)"
        )
    decoder = load_model(decoder_path)
    _take_branch(decoder, use_cache=True)
    cross = [str(value.name) for value in decoder.graph.inputs if _is_cross(value, PAST)]
    presents = [name.replace(PAST, PRESENT, 1) for name in cross]
    first_path = None
    if not cross or set(presents) - {value.name for value in encoder.graph.outputs}:
        first_path = files.get("first", files.get("merged"))
        if first_path is None or not cross:
            raise UnknownFormError(
                f"no file computes {PRESENT}.0{_CROSS}key from {HIDDEN}; name the decoder that "
                "does too (decoder_model.onnx)"
            )
        first = load_model(first_path)
        _take_branch(first, use_cache=False)
        _move_projections(first, encoder, presents)
    _simplify(decoder)
    return EncoderDecoder(encoder, decoder, files["encoder"], first_path)


def _part(model: ir.Model) -> str:
    """Name what a file is for: ``encoder``, ``first`` or ``later`` tokens, ``merged`` or other."""
    inputs = {str(value.name) for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    if LAST_HIDDEN in outputs and "logits" not in outputs:
        return "encoder"
    if USE_CACHE in inputs:
        return "merged"
    if any(name.startswith(f"{PAST}.") for name in inputs):
        return "later"
    return "first" if HIDDEN in inputs else "other"


def _is_cross(value: ir.Value, prefix: str) -> bool:
    return str(value.name).startswith(f"{prefix}.") and _CROSS in str(value.name)


def _take_branch(model: ir.Model, *, use_cache: bool) -> None:
    """Replace every If on ``use_cache_branch`` by one of its branches."""
    graph = model.graph
    for node in [node for node in graph if _is_flagged(node)]:
        sides = [node.attributes[f"{name}_branch"].as_graph() for name in ("then", "else")]
        branch, other = sides if use_cache else sides[::-1]
        other.outputs.clear()
        other.remove(list(other), safe=True)  # so that its nodes use no values of the graph
        results, nodes = list(branch.outputs), list(branch)
        branch.outputs.clear()
        branch.remove(nodes)
        graph.insert_before(node, nodes)
        for value in [branch.initializers.pop(name) for name in list(branch.initializers)]:
            graph.register_initializer(value)
        names = [output.name for output in node.outputs]
        ir.convenience.replace_all_uses_with(node.outputs, results, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        for output_name, result in zip(names, results, strict=True):
            if result.producer() is not None:
                result.name = output_name


def _is_flagged(node: ir.Node) -> bool:
    flag = node.inputs[0] if node.op_type == "If" else None
    return flag is not None and flag.name == USE_CACHE


def _move_projections(first: ir.Model, encoder: ir.Model, presents: list[str]) -> None:
    """Let the encoder compute keys and values of cross-attention as the decoder ``first`` does."""
    imports, others = encoder.opset_imports, first.opset_imports
    outputs: Mapping[str | None, ir.Value] = {v.name: v for v in first.graph.outputs}
    hidden = next(value for value in encoder.graph.outputs if value.name == LAST_HIDDEN)
    if imports | others != others | imports:
        raise UnknownFormError("encoder and decoder are of different opsets; export them again")
    if missing := next((name for name in presents if name not in outputs), None):
        raise UnknownFormError(f"the decoder that reads {HIDDEN} does not return {missing}")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(first)
    _read_batch_of_hidden(first.graph, [outputs[name] for name in presents])
    try:
        part = ir.convenience.extract(first.graph, [HIDDEN], [outputs[name] for name in presents])
    except ValueError as error:
        raise UnknownFormError(
            f"keys and values of cross-attention depend on more than {HIDDEN}"
        ) from error
    imports.update(others)
    results, nodes = list(part.outputs), list(part)
    read_from(part, encoder.graph, {HIDDEN: hidden})
    part.outputs.clear()
    part.remove(nodes)
    encoder.graph.extend(nodes)
    encoder.graph.outputs.extend(results)
    for name, value in zip(presents, results, strict=True):
        value.name = name


def _read_batch_of_hidden(graph: ir.Graph, results: list[ir.Value]) -> None:
    """Let Reshapes to which ``results`` go back read the batch size of the last hidden state.

    Exporters read it from the decoder's tokens, of which there are as many.
    """
    hidden = next(value for value in graph.inputs if value.name == HIDDEN)
    shape = ir.node("Shape", [hidden])
    graph.insert_before(graph[0], shape)
    pending, seen = list(results), set(results)
    while pending:
        node = pending.pop().producer()
        if node is None:
            continue
        reads_size = node.op_type == "Gather" and producer(node.inputs[0], "Shape") is not None
        if reads_size and scalar(node.inputs[1]) == 0:
            node.replace_input_with(0, shape.outputs[0])
        new = {value for value in node.inputs if value is not None} - seen
        seen |= new
        pending += new


def _simplify(decoder: ir.Model) -> None:
    """Leave the inputs and outputs that a bundle's decoder has."""
    graph = decoder.graph
    kept = [value for value in graph.outputs if not _is_cross(value, PRESENT)]
    graph.outputs[:] = kept
    common.RemoveUnusedNodesPass()(decoder)
    unused = {HIDDEN, USE_CACHE}
    inputs = [value for value in graph.inputs if value.name not in unused or value.uses()]
    graph.inputs[:] = inputs
    by_name = {str(value.name): value for value in [*inputs, *kept]}
    if not {"input_ids", "logits"} <= by_name.keys():
        raise UnknownFormError("the decoder has no input_ids or no logits")
    known = {"input_ids", ENCODER_MASK}
    if foreign := [n for n in map(str, (v.name for v in inputs)) if _is_foreign(n, known)]:
        raise UnknownFormError(f"the decoder's input {foreign[0]} is not one that edgetie feeds")
    ids, logits = by_name["input_ids"].shape, by_name["logits"].shape
    if ids is not None and logits is not None and len(ids) == 2 and len(logits) == 3:
        by_name["logits"].shape = ir.Shape([*ids, logits[-1]])  # some declare one token


def _is_foreign(name: str, known: set[str]) -> bool:
    return name not in known and not name.startswith(f"{PAST}.")
