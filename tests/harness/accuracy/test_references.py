"""References answer what a naive computation answers. Also a decoder small enough to compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from naive_decoder import (
    NaiveReference,
    table,
    write_decoder,
)

from edgetie.errors import BundleError, SourceError
from edgetie.harness.accuracy.references import BundleReference, TorchReference, resolve_reference


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
        "from edgetie.harness.accuracy import check\n"
        "from edgetie.harness.latency import bench\n"
        "from edgetie.harness.accuracy.references import resolve_reference\n"
        "from edgetie.report import plots, tables\n"
        f"resolve_reference({str(path)!r})\n"
        "print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
