"""A bundle in another process computes what it computes in this one."""

from __future__ import annotations

from pathlib import Path

import image_models
import numpy as np
import onnxruntime
import pytest
from image_cases import drawn
from naive_decoder import table, write_decoder

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import BundleError, ProviderError
from edgetie.harness.accuracy.references import BundleReference
from edgetie.harness.accuracy.remote_reference import RemoteReference, open_reference


def test_a_remote_bundle_equals_a_local_one(tmp_path: Path) -> None:
    bundle = open_bundle(write_decoder(tmp_path, table()))
    local = BundleReference(bundle)
    remote = RemoteReference(bundle, provider="cpu", threads=1)
    try:
        assert remote.name == local.name
        assert (remote.media, remote.longest) == ("", None)
        assert remote.nodes_per_provider == local.nodes_per_provider
        assert remote.fallback_nodes == {}
        assert remote.onnxruntime_version == onnxruntime.__version__
        ids = np.array([[5, 0, 95, 17]])
        np.testing.assert_array_equal(remote.logits(ids), local.logits(ids))
        assert remote.greedy([5, 0], 4) == local.greedy([5, 0], 4)
        with pytest.raises(BundleError, match="ONNX Runtime failed"):
            remote.logits(np.array([[4000]]))
        assert remote.greedy([5], 1) == local.greedy([5], 1)  # an error does not end it
        remote._process.kill()
        with pytest.raises(BundleError, match="ended with signal 9"):
            remote.greedy([5], 1)
    finally:
        remote.close()
    assert remote._process.returncode is not None


def test_a_provider_of_this_process_runs_in_it(tmp_path: Path) -> None:
    bundle = open_bundle(write_decoder(tmp_path, table()))
    with open_reference(bundle, provider="cpu", threads=1) as reference:
        assert isinstance(reference, BundleReference)
    with (
        pytest.raises(ProviderError, match="unknown"),
        open_reference(bundle, provider="abacus", threads=1),
    ):
        pass


def test_a_remote_model_reads_the_same_images(tmp_path: Path) -> None:
    image_models.export(image_models.build(image_models.llava()), tmp_path / "bundle")
    image_models.write_llava_processor(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    drawn(20, 30).save(tmp_path / "images" / "a.png")
    bundle = open_bundle(tmp_path / "bundle")
    local = BundleReference(bundle, images=tmp_path / "images")
    remote = RemoteReference(bundle, provider="cpu", threads=1, images=tmp_path / "images")
    try:
        assert remote.media == local.media == f"1 images of {tmp_path / 'images'}"
        assert remote.longest == local.longest == 64 - 4
        ids = np.array([[3, 4, 5]])
        np.testing.assert_allclose(remote.logits(ids), local.logits(ids), atol=1e-5)
        (there,), (here,) = remote.encode(ids), local.encode(ids)
        np.testing.assert_allclose(there, here, atol=1e-5)
    finally:
        remote.close()
