"""edgetie's own provider in tests: bundles that it runs, and packages without its library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_models as tiny
from onnx import TensorProto, helper, numpy_helper

from edgetie.kernels import get_library_path
from edgetie.providers.registry import OWN, PROVIDERS, explain_absence
from edgetie.quantize.quantizer import quantize_model

OWN_NAME = PROVIDERS[OWN].ort_name

needs_own_provider = pytest.mark.skipif(
    explain_absence(PROVIDERS[OWN]) is not None, reason="edgetie's library is not built here"
)


def write_int8(directory: Path) -> Path:
    """A tiny int8 bundle with a tokenizer, whose products the provider takes."""
    quantize_model(tiny.write_chat_bundle(directory / "fp32"), directory / "int8")
    return directory / "int8"


def write_large_int8(directory: Path) -> Path:
    """An int8 bundle that looks up tokens in a table of 8.7 MB and multiplies by it."""
    rows, columns = 34_000, 256
    table = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Transpose", ["table"], ["across"], perm=[1, 0]),
            helper.make_node("MatMul", ["h", "across"], ["logits"], name="head"),
        ],
        "tied",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", rows])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, directory / "tied.onnx")
    quantize_model(directory / "tied.onnx", directory / "int8")
    return directory / "int8"


def package_with_library(folder: Path, library: bytes | None) -> dict[str, Any]:
    """Copy the package with another library, or none; returns the environment that imports it."""
    import edgetie

    name = Path(get_library_path()).name
    source = Path(edgetie.__file__).parent
    ignored = shutil.ignore_patterns(name, "__pycache__", "src", "templates")
    shutil.copytree(source, folder / "edgetie", ignore=ignored)
    if library is not None:
        (folder / "edgetie" / "kernels" / name).write_bytes(library)
    return {**os.environ, "PYTHONPATH": str(folder)}
