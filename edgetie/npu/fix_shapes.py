"""Give the graphs of a bundle fixed shapes, which compilers for NPUs need."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, describe_tensors, write_manifest
from edgetie.bundle.names import MANIFEST, PREFILL
from edgetie.errors import BundleError, EdgetieError
from edgetie.graph.structure import read_proto
from edgetie.ties.groups import find_shared_ties

_NOT_COPIED = {MANIFEST, "genai_config.json"}

_CACHE_AXES = 4  # (batch, kv_heads, length, head_size)


def fix_shapes(
    source: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    prompt_tokens: int = 64,
    context: int = 512,
    force: bool = False,
) -> Bundle:
    """Write a bundle whose graphs have fixed shapes, for one sequence.

    The KV cache has a fixed length and slides: new tokens push the oldest ones out. One graph reads
    several tokens of the prompt at a time, the other single tokens, both from the same data file.

    Args:
        source: a decoder exported with ``target="mobile-npu"``, quantized or not.
        output: directory to write.
        prompt_tokens: tokens of a prompt that are read at once; with 1, by the same graph.
        context: largest number of tokens of prompt and answer together.
        force: replace an existing bundle.

    Raises:
        BundleError: if the source cannot be read, or its attention is a fused operator.
        EdgetieError: if the sizes are not compatible.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    manifest = _require_open_shapes(bundle)
    longest = manifest.signature.max_positions
    if not 1 <= prompt_tokens < context or (longest is not None and context > longest):
        limit = "" if longest is None else f" and at most {longest}"
        message = f"a context of {context} tokens does not fit: it must be longer than"
        message += f" prompt_tokens, which is at least 1{limit}"
        raise EdgetieError(message, parameter="prompt_tokens", value=prompt_tokens)
    with atomic_directory(output, force=force) as directory:
        for file in bundle.files:
            if file.name not in {*_NOT_COPIED, bundle.model_path.name}:
                shutil.copyfile(file, directory / file.name)
        if prompt_tokens > 1:
            _write(bundle.model_path, directory / PREFILL, prompt_tokens, context)
        _write(bundle.model_path, directory / bundle.model_path.name, 1, context)
        paths = Bundle(directory, directory / bundle.model_path.name, manifest).model_paths
        models = {path.name: ir.load(path) for path in paths}
        graph = models[bundle.model_path.name].graph
        signature = replace(
            manifest.signature,
            inputs=describe_tensors(graph.inputs),
            outputs=describe_tensors(graph.outputs),
            max_positions=context,
        )
        ties = find_shared_ties(models, [group.parameters for group in manifest.ties])
        manifest = replace(manifest, signature=signature, ties=ties)
        write_manifest(directory, manifest)
    return open_bundle(output)


def _require_open_shapes(bundle: Bundle) -> Manifest:
    """Return the manifest of a decoder whose shapes can be fixed, or raise a BundleError."""
    manifest, path = bundle.manifest, bundle.path
    if bundle.is_bare:
        raise BundleError(f"{path}: not a bundle; export the model with edgetie")
    cache = manifest.signature.cache
    if manifest.task != "causal-lm" or not cache:
        raise BundleError(f"{path}: not a decoder with a KV cache, whose length could be fixed")
    if manifest.signature.cache_in_place:
        raise BundleError(
            f"{path}: its attention is a fused operator of ONNX Runtime; export again for target "
            "mobile-npu, which uses operators of the ONNX standard"
        )
    if manifest.adapters:
        raise BundleError(
            f"{path}: has adapters, whose rank is not fixed; merge one into its base and export it"
        )
    if bundle.has_fixed_shapes:
        raise BundleError(f"{path}: its shapes are fixed already")
    if any(len(v.shape) != _CACHE_AXES or isinstance(v.shape[2], int) for v in cache):
        raise BundleError(
            f"{path}: some of its layers have a recurrent state instead of a KV cache; run it as "
            "it is"
        )
    return manifest


def _write(source: Path, target: Path, tokens: int, context: int) -> None:
    """Write the graph for a fixed number of tokens. Its weights stay in the same file."""
    # onnxruntime.tools imports torch if it is installed
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    model = read_proto(source)
    shapes = {"input_ids": (1, tokens), "position_ids": (1, tokens), "attention_mask": (1, context)}
    cache = (1, None, context - tokens, None)
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, shapes.get(value.name, cache), strict=False):
            if dimension.dim_param and size is not None:
                make_dim_param_fixed(model.graph, dimension.dim_param, size)
        if not all(dimension.HasField("dim_value") for dimension in dimensions):
            raise BundleError(f"{source}: the shape of input {value.name} cannot be fixed")
    for value in model.graph.output:  # present keys and values have the length of the context
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_value = (1, tokens, context)[axis]
    del model.graph.value_info[:]  # ONNX Runtime infers them again
    target.write_bytes(model.SerializeToString())  # onnx.save could write to the weights' file
