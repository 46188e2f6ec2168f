"""Compile graphs of fixed shapes for an NPU in advance, into EPContext nodes.

See https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.bundle.names import MANIFEST
from edgetie.errors import BundleError
from edgetie.graph.external_data import external_data_files
from edgetie.providers.json_worker import ask_worker, reply
from edgetie.providers.registry import find_provider
from edgetie.runtime.session import write_contexts


def compile_bundle(
    source: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    provider: str = "qnn",
    force: bool = False,
) -> Bundle:
    """Compile a bundle of fixed shapes for a provider that can save compiled graphs.

    The graphs for prompts and for single tokens share one context binary, which contains their
    weights once.

    Args:
        source: a bundle written by :func:`edgetie.fix_shapes`.
        output: directory to write.
        provider: short name of the execution provider.
        force: replace an existing bundle.

    Raises:
        ProviderError: if the provider is absent, cannot save graphs, or runs none of the nodes.
        BundleError: if the bundle cannot be read, has dynamic shapes or is compiled already.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    row = find_provider(provider)
    if not row.contexts:
        raise row.error("cannot save compiled graphs; run the bundle as it is")
    manifest = bundle.manifest
    if not bundle.has_fixed_shapes:
        raise BundleError(f"{bundle.path}: has dynamic shapes; first run edgetie fix-shapes")
    if manifest.compiled:
        raise BundleError(f"{bundle.directory}: is compiled already, for {manifest.compiled}")
    graphs = bundle.model_paths
    replaced = {MANIFEST, *(path.name for path in graphs)}
    replaced |= {file.name for path in graphs for file in external_data_files(path)}
    with atomic_directory(output, force=force) as directory:
        request = {"graphs": [str(p) for p in graphs], "folder": str(directory)}
        ask_worker(row.name, "edgetie.npu.compile", request, str(bundle.directory))
        for file in bundle.files:
            if file.name not in replaced:
                shutil.copyfile(file, directory / file.name)
        write_manifest(directory, replace(manifest, compiled=row.name, ties=[], files={}))
    return open_bundle(output)


def _compile(request: dict[str, Any]) -> None:
    graphs = [Path(path) for path in request["graphs"]]
    write_contexts(graphs, Path(request["folder"]), request["provider"])


if __name__ == "__main__":
    reply(_compile)
