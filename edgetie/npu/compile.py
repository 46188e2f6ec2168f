"""``compile``: graphs of fixed shapes made ready for an NPU beforehand, not when a session starts.

ONNX Runtime writes what a provider made of a graph as an EPContext node beside a context binary
(https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html). The graph for prompts and
the one for tokens go into one binary, which holds their weights once. A provider compiles in an
environment of its own where this process lacks it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetie.bundle.atomic import atomic_directory
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.manifest import write_manifest
from edgetie.bundle.names import MANIFEST
from edgetie.errors import BundleError, ProviderError
from edgetie.graph.external_data import external_data_files
from edgetie.providers.environments import ask
from edgetie.providers.json_worker import reply
from edgetie.providers.registry import find
from edgetie.runtime.session import write_contexts


def compile_bundle(
    source: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    provider: str = "qnn",
    force: bool = False,
) -> Bundle:
    """Compile a bundle of fixed shapes for a provider that keeps what it compiles.

    Args:
        source: what :func:`edgetie.fix_shapes` wrote.
        output: directory to write; complete or not at all. Its weights are in the context binary.
        provider: short name of the execution provider.
        force: replace an existing bundle.

    Raises:
        ProviderError: if the provider is absent, keeps nothing, or takes no node.
        BundleError: if the bundle cannot be read, has open shapes or is compiled already.
    """
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    row = find(provider)
    if not row.contexts:
        raise ProviderError(f"--provider {row.name}: keeps nothing that it compiles; run it as is")
    manifest = bundle.manifest
    if not bundle.has_fixed_shapes:
        raise BundleError(f"{bundle.directory}: has open shapes; first run edgetie fix-shapes")
    if manifest.compiled:
        raise BundleError(f"{bundle.directory}: is compiled already, for {manifest.compiled}")
    graphs = bundle.model_paths
    replaced = {MANIFEST, *(path.name for path in graphs)}
    replaced |= {file.name for path in graphs for file in external_data_files(path)}
    with atomic_directory(output, force=force) as directory:
        request = {"graphs": [str(p) for p in graphs], "folder": str(directory)}
        ask(row.name, "edgetie.npu.compile", request, str(bundle.directory))
        for file in bundle.files:
            if file.name not in replaced:
                shutil.copyfile(file, directory / file.name)
        write_manifest(directory, replace(manifest, compiled=row.name, ties=[], files={}))
    return open_bundle(output)


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    graphs = [Path(path) for path in request["graphs"]]
    write_contexts(graphs, Path(request["folder"]), request["provider"])
    return {}


if __name__ == "__main__":
    reply(_compile)
