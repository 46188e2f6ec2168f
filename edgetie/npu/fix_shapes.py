"""``fix-shapes``: graphs of fixed shapes, which compilers for NPUs need, over one file of weights.

A step reads so many tokens, and a window of so many before and with them; its cache has the length
of the window and slides: what a step adds pushes the oldest out. Where less has been read, the mask
hides the rest. One graph reads the prompt in pieces, one a token at a time; both point at the same
bytes, so a weight is in the file once.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import Manifest, describe, write_manifest
from edgetie.bundle.names import MANIFEST, PREFILL
from edgetie.errors import BundleError, EdgetieError
from edgetie.ties.groups import find_shared_ties

_LEFT_OUT = {MANIFEST, "genai_config.json"}

_AXES = 4  # of a KV cache: (batch, kv_heads, length, head_size)


def fix_shapes(
    source: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    prompt_tokens: int = 64,
    context: int = 512,
    force: bool = False,
) -> Bundle:
    """Write a bundle whose graphs have fixed shapes: one sequence, a window of tokens.

    Args:
        source: a decoder exported with ``target="mobile-npu"``, quantized or not.
        output: directory to write; complete or not at all.
        prompt_tokens: tokens that the graph for prompts reads at once; with 1 there is none, and
            prompts are read token by token.
        context: tokens of the window: prompt and answer together are no longer.
        force: replace an existing bundle.

    Raises:
        BundleError: if the source cannot be read, or its attention is not written out.
        EdgetieError: if the sizes do not fit together.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    manifest = _require_open_shapes(bundle)
    longest = manifest.signature.max_positions
    if not 1 <= prompt_tokens < context or (longest is not None and context > longest):
        limit = f", which has at most {longest}" if longest is not None else ""
        raise EdgetieError(
            f"--prompt-tokens {prompt_tokens} --context {context}: a prompt's piece has at least "
            f"one token and is shorter than the context{limit}"
        )
    with atomic_directory(output, force=force) as directory:
        for file in bundle.files:
            if file.name not in {*_LEFT_OUT, bundle.model_path.name}:
                shutil.copyfile(file, directory / file.name)
        if prompt_tokens > 1:
            _write(bundle.model_path, directory / PREFILL, prompt_tokens, context)
        _write(bundle.model_path, directory / bundle.model_path.name, 1, context)
        paths = Bundle(directory, directory / bundle.model_path.name, manifest).model_paths
        models = {path.name: ir.load(path) for path in paths}
        graph = models[bundle.model_path.name].graph
        signature = replace(
            manifest.signature,
            inputs=describe(graph.inputs),
            outputs=describe(graph.outputs),
            max_positions=context,
        )
        ties = find_shared_ties(models, [group.parameters for group in manifest.ties])
        manifest = replace(manifest, signature=signature, ties=ties)
        write_manifest(directory, manifest)
    return open_bundle(output)


def _require_open_shapes(bundle: Bundle) -> Manifest:
    manifest, where = bundle.manifest, bundle.directory
    if bundle.is_bare:
        raise BundleError(f"{bundle.model_path}: no bundle; export the model with edgetie")
    cache = manifest.signature.cache
    if manifest.task != "causal-lm" or not cache:
        raise BundleError(f"{where}: no decoder with a cache, so there is no window to fix")
    if manifest.signature.cache_in_place:
        raise BundleError(
            f"{where}: its attention is one operator of ONNX Runtime's own; export it with "
            "--target mobile-npu, which writes it out"
        )
    if bundle.has_fixed_shapes:
        raise BundleError(f"{where}: its shapes are fixed already")
    if any(len(v.shape) != _AXES or isinstance(v.shape[2], int) for v in cache):
        raise BundleError(
            f"{where}: some of its layers keep a state of one size, which has no window; run it as "
            "it is"
        )
    return manifest


def _write(source: Path, target: Path, tokens: int, context: int) -> None:
    """Write the graph for so many tokens at once; its weights stay where they are."""
    model = onnx.load(source, load_external_data=False)
    shapes = {"input_ids": (1, tokens), "position_ids": (1, tokens), "attention_mask": (1, context)}
    cache = (1, None, context - tokens, None)
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, shapes.get(value.name, cache), strict=False):
            if dimension.dim_param and size is not None:
                make_dim_param_fixed(model.graph, dimension.dim_param, size)
        if not all(dimension.HasField("dim_value") for dimension in dimensions):
            raise BundleError(f"{source}: the shape of input {value.name} cannot be fixed")
    for value in model.graph.output:  # keys and values are as long as the window
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_value = (1, tokens, context)[axis]
    del model.graph.value_info[:]  # what is between follows from the inputs
    onnx.save(model, target)
