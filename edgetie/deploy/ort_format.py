"""Write the format ``.ort``: one file with graph and weights, for reduced builds of ONNX Runtime.

https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, summarize

MODEL, OPERATORS = "model.ort", "required_operators.config"

_LIMIT = 2**31 - 1  # a flatbuffer's offsets are signed 32-bit integers


def write_ort(bundle: Bundle, target: Path) -> None:
    """Write a bundle's model as one file that keeps its ties.

    A session writes it as it starts. Its optimizer, which would fold and copy weights, is off.

    Raises:
        BundleError: if ONNX Runtime cannot write it, it is too large, or it would hold a tied
            weight more than once.
    """
    path = bundle.model_path
    size = sum(file.stat().st_size for file in bundle.files if file.name.startswith(path.name))
    if size > _LIMIT:
        raise BundleError(f"{path}: {size / 1e9:.1f} GB; the format .ort holds less than 2 GB")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # pybind11 classes without a common base
        raise BundleError(f"{path}: cannot be written as .ort: {summarize(error)}") from error
    weights = weights_of(target)
    copies = Counter(weights.values())
    for group in bundle.manifest.ties:
        if group.name not in weights:
            raise BundleError(f"{bundle.directory}: {group.name} is lost in the .ort file")
        count = copies[weights[group.name]]
        if count > 1:
            raise BundleError(
                f"{bundle.directory}: {group.name} would be in the .ort file {count} times; "
                "quantize with scheme='int8' or 'int8-mapped'"
            )


def write_operators(model: Path, target: Path) -> None:
    """Write the operators and types of a ``.ort`` file, for a reduced build of ONNX Runtime."""
    from onnxruntime.tools.ort_format_model import utils  # configures logging as it is imported

    utils.log.setLevel(logging.WARNING)
    utils.create_config_from_models([model], target, enable_type_reduction=True)
    lines = target.read_text(encoding="utf-8").splitlines()
    text = "\n".join([f"# Generated from {model.name}", *(x for x in lines if x[:1] != "#")])
    target.write_text(text + "\n", encoding="utf-8")


def weights_of(model: Path) -> dict[str, bytes]:
    """Hash each initializer of a ``.ort`` file: SHA-256 by name."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import (
        InferenceSession,
    )

    data = np.memmap(model, np.uint8, "r")
    if bytes(data[4:8]) != b"ORTM":
        raise BundleError(f"{model}: not a file of the format .ort")
    graph: Any = InferenceSession.GetRootAs(data, 0).Model().Graph()
    digests = {}
    for index in range(graph.InitializersLength()):
        tensor = graph.Initializers(index)
        if tensor.RawDataLength():
            digests[tensor.Name().decode()] = hashlib.sha256(tensor.RawDataAsNumpy()).digest()
    return digests
