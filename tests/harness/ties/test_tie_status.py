"""The state of tied weights: intact, broken, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from naive_decoder import VOCAB, WIDTH, table, write_decoder

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import Manifest, Signature, write_manifest
from edgetie.harness.ties.tie_status import tie_status
from edgetie.ties.groups import find_ties


def write_bundle(directory: Path, weights: np.ndarray) -> Path:
    ties = find_ties(ir.load(write_decoder(directory, weights)))
    signature = Signature([], [], logits="all", max_positions=64, vocab_size=len(weights))
    manifest = Manifest({}, "causal-lm", "fp32", signature, ties, unique_parameters=6144)
    write_manifest(directory, manifest)
    return directory


def test_tie_status_of_tied_copied_and_untied_files(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "tied", table()))
    status = tie_status(bundle)
    assert (status.groups, status.intact) == (1, True)
    assert "weights: 2 uses" in status.detail

    model = onnx.load(str(bundle.model_path))
    copy = onnx.TensorProto()
    copy.CopyFrom(model.graph.initializer[0])
    copy.name = "copy"
    model.graph.initializer.append(copy)
    next(node for node in model.graph.node if node.op_type == "Transpose").input[0] = "copy"
    onnx.save(model, str(bundle.model_path))
    broken = tie_status(bundle)
    assert broken.intact is False
    assert "had 2 uses and has 1" in broken.detail
    bare = tie_status(open_bundle(bundle.model_path))
    assert bare.intact is False
    assert bare.detail == "weights = copy stored 2 times"

    other = onnx.numpy_helper.from_array(table(5).reshape(VOCAB, WIDTH), "copy")
    model.graph.initializer[-1].CopyFrom(other)
    onnx.save(model, str(tmp_path / "untied.onnx"))
    assert tie_status(open_bundle(tmp_path / "untied.onnx")).intact is None
