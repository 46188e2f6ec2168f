"""References answer what a naive computation answers. Also a decoder small enough to compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetie.errors import BundleError, SourceError
from edgetie.harness.accuracy.references import BundleReference, TorchReference, resolve_reference

VOCAB, WIDTH, SCALE = 96, 64, 0.25


def table(seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(vocab, WIDTH)).astype(np.float32)


def write_decoder(directory: Path, weights: np.ndarray, *, cached: bool = True) -> Path:
    """An ONNX decoder whose logits are ``SCALE * (sum of embeddings so far) @ weightsᵀ``."""
    tied = numpy_helper.from_array(weights, "weights")
    constants = [
        numpy_helper.from_array(np.array(value, kind), name)
        for name, value, kind in (
            ("one", [1], np.int64), ("two", [2], np.int64), ("axis", 2, np.int64),
            ("end", [1 << 40], np.int64), ("scale", SCALE, np.float32),
        )
    ]  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["weights", "input_ids"], ["embedded"], "lookup"),
        node("Unsqueeze", ["embedded", "one"], ["new"]),
        node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        node("CumSum", ["present.0.value" if cached else "new", "axis"], ["sums"]),
        node("Shape", ["input_ids"], ["count"], start=1, end=2),
        node("Neg", ["count"], ["start"]),
        node("Slice", ["sums", "start", "end", "two"], ["last"]),
        node("Squeeze", ["last", "one"], ["hidden"]),
        node("Mul", ["hidden", "scale"], ["scaled"]),
        node("Transpose", ["weights"], ["head"], perm=[1, 0]),
        node("MatMul", ["scaled", "head"], ["logits"], "head_product"),
    ]
    info, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [info("input_ids", TensorProto.INT64, ["b", "s"])]
    inputs += [info("attention_mask", TensorProto.INT64, ["b", "t"])]
    outputs = [info("logits", kind, ["b", "s", len(weights)])]
    if cached:
        for name in ("key", "value"):
            inputs.append(info(f"past_key_values.0.{name}", kind, ["b", 1, "p", WIDTH]))
            outputs.append(info(f"present.0.{name}", kind, ["b", 1, "t", WIDTH]))
    else:
        nodes = [each for each in nodes if each.op_type != "Concat"]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [tied, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(directory / "model.onnx"))
    return directory / "model.onnx"


class NaiveReference:
    """The same model in numpy, in float64."""

    name = "naive"

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights.astype(np.float64)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        hidden = np.cumsum(self.weights[ids[0]], axis=0) * SCALE
        return (hidden @ self.weights.T).astype(np.float32)

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        tokens = list(prompt_ids)
        for _ in range(n):
            tokens.append(int(self.logits(np.array([tokens]))[-1].argmax()))
        return tokens[len(prompt_ids) :]


@pytest.mark.parametrize("cached", [True, False])
def test_bundle_reference_equals_naive(tmp_path: Path, cached: bool) -> None:
    weights = table()
    reference = BundleReference(write_decoder(tmp_path, weights, cached=cached))
    naive = NaiveReference(weights)
    ids = np.array([[5, 0, 95, 17, 17, 3]])
    got = reference.logits(ids)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, naive.logits(ids), rtol=1e-4, atol=1e-4)
    assert reference.greedy([5, 0, 95], 7) == naive.greedy([5, 0, 95], 7)
    assert reference.name.endswith("model.onnx")


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3Text"])
def test_transformers_model_with_cache_equals_without(kind: str) -> None:
    import torch

    model = models.transformers_model(kind)
    reference = TorchReference(model, kind)
    ids = np.array([[4, 9, 300, 17, 23]])
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), use_cache=False).logits[0]
        tokens = torch.from_numpy(ids)
        for _ in range(6):
            chosen = model(tokens, use_cache=False).logits[0, -1].argmax()
            tokens = torch.cat([tokens, chosen.view(1, 1)], dim=1)
    np.testing.assert_allclose(reference.logits(ids), expected.numpy(), atol=1e-5)
    assert reference.greedy(ids[0].tolist(), 6) == tokens[0, 5:].tolist()


@pytest.mark.parametrize("make", [models.hand_written, models.cacheless])
def test_hand_written_module_with_and_without_position_ids(make) -> None:
    import torch

    module = make()
    reference = TorchReference(module, "own")
    ids = torch.tensor([[7, 1, 200]])
    with torch.no_grad():
        positions = (torch.arange(3)[None],) if make is models.hand_written else ()
        expected = module(ids, *positions)[0]
    np.testing.assert_allclose(reference.logits(ids.numpy()), expected.numpy(), atol=1e-6)
    first, second = reference.greedy([7, 1, 200], 2)
    assert first == int(expected[-1].argmax())
    assert reference.greedy([7, 1, 200, first], 1) == [second]


def test_module_without_logits_is_refused() -> None:
    import torch

    with pytest.raises(SourceError, match="flat: forward returned Tensor, not logits"):
        TorchReference(torch.nn.Flatten(), "flat").logits(np.array([[1]]))


def test_resolve_tells_onnx_from_torch(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "onnx", table())
    assert isinstance(resolve_reference(str(path)), BundleReference)
    assert isinstance(resolve_reference(str(path.parent)), BundleReference)
    saved = tmp_path / "torch"
    models.transformers_model("Llama").save_pretrained(saved)
    write_decoder(saved, table())  # torch weights win over an ONNX file beside them
    assert isinstance(resolve_reference(str(saved)), TorchReference)
    with pytest.raises(SourceError, match="no such file"):
        resolve_reference(str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match="no such file"):
        resolve_reference(str(tmp_path / "nothing.onnx"))


def test_harness_needs_no_torch(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    code = (
        "import sys\n"
        "from edgetie.harness import bench, check, resolve_reference\n"
        "from edgetie.report import plots, tables\n"
        f"resolve_reference({str(path)!r})\n"
        "print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
