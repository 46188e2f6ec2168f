"""Several files at once, data files, and existing outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from broken_models import LOOKUP, ROWS, WIDTH, broken, copies, logits, save, table
from onnx import TensorProto, helper

from edgetie.errors import BundleError
from edgetie.repair import tie_model

pytestmark = pytest.mark.slow  # each test starts several ONNX Runtime processes


def test_half_precision_and_external_data(tmp_path: Path) -> None:
    w = table().astype(np.float16)
    nodes = [LOOKUP, helper.make_node("MatMul", ["x", "head"], ["logits"])]
    values = {"table": w, "head": np.ascontiguousarray(w.T)}
    path = save(tmp_path / "half.onnx", nodes, values, external=True, kind=TensorProto.FLOAT16)
    report = tie_model(path, tmp_path / "fixed.onnx")
    assert copies(tmp_path / "fixed.onnx") == 1
    assert report.bytes_before > 2 * w.nbytes
    assert report.bytes_after < 1.2 * w.nbytes + 2000
    assert not (tmp_path / "fixed.onnx.weights").exists()


def test_bad_output_and_bad_input(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    (tmp_path / "there.onnx").write_bytes(b"precious")
    with pytest.raises(BundleError, match="already exists"):
        tie_model(path, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_bytes() == b"precious"
    (tmp_path / "bad.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(BundleError, match=r"not (a readable|an) ONNX model"):
        tie_model(tmp_path / "bad.onnx", tmp_path / "fixed.onnx")
    with pytest.raises(BundleError, match="no such file"):
        tie_model(tmp_path / "absent.onnx", tmp_path / "fixed.onnx")
    before = sorted(file.name for file in tmp_path.iterdir())
    report = tie_model(path, tmp_path / "there.onnx", force=True)
    assert report.path.read_bytes() != b"precious"
    after = sorted(file.name for file in tmp_path.iterdir())
    assert after == sorted([*before, "there.onnx.data"])


def test_a_file_may_be_repaired_in_place(tmp_path: Path) -> None:
    path = broken(tmp_path / "model.onnx", "duplicate")
    expected = logits(path)
    tie_model(path, path, force=True)
    assert copies(path) == 1
    np.testing.assert_allclose(logits(path), expected, atol=1e-5)


def ranges(path: Path, size: int = ROWS * WIDTH) -> set[tuple[str, str]]:
    """The places of a file's tensors of so many elements in their data files."""
    places = set()
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        info = {entry.key: entry.value for entry in tensor.external_data}
        if int(np.prod(tensor.dims)) == size:
            places.add((info["location"], info["offset"]))
    return places


def test_encoder_and_decoders_share_one_range(tmp_path: Path) -> None:
    w = table()
    cross = np.random.default_rng(5).normal(size=(64, 64)).astype(np.float32)
    encoder = [LOOKUP, helper.make_node("Identity", ["x"], ["logits"])]
    decoder = [LOOKUP, helper.make_node("MatMul", ["x", "lm_head"], ["logits"])]
    transposed = np.ascontiguousarray(w.T)
    extra = [
        helper.make_node("Shape", ["cross"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["r"], keepdims=0),
    ]
    decoder_nodes = [*extra, *decoder[:1], helper.make_node("Add", ["x", "r"], ["y"])]
    decoder_nodes.append(helper.make_node("MatMul", ["y", "lm_head"], ["logits"]))
    files = [
        save(tmp_path / "encoder.onnx", encoder, {"table": w}),
        save(tmp_path / "decoder.onnx", decoder, {"table": w, "lm_head": transposed}),
        save(
            tmp_path / "with_past.onnx",
            decoder_nodes,
            {"table": w, "lm_head": transposed, "cross": cross},
        ),
    ]
    report = tie_model(files, tmp_path / "tied")
    new = [tmp_path / "tied" / path.name for path in files]
    assert len(set.union(*(ranges(path) for path in new))) == 1
    assert report.bytes_after < report.bytes_before * 0.3
    assert report.merged == {
        "decoder.onnx: lm_head": "decoder.onnx: table",
        "with_past.onnx: lm_head": "with_past.onnx: table",
    }
    for before, after in zip(files, new, strict=True):
        np.testing.assert_allclose(logits(after), logits(before), atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "tied").iterdir()) == sorted(
        [*(path.name for path in files), "model.onnx.data"]
    )
    with pytest.raises(BundleError, match="never replaced"):
        tie_model(files, tmp_path / "tied")
    with pytest.raises(BundleError, match="same name"):
        tie_model([files[0], files[0]], tmp_path / "twice")


def test_a_decoder_that_has_the_head_alone_reads_the_encoders_table(tmp_path: Path) -> None:
    """The head's transposed copy is in another file than the table."""
    w = table()
    encoder = [LOOKUP, helper.make_node("Identity", ["x"], ["logits"])]
    cast = helper.make_node("Cast", ["input_ids"], ["c"], to=TensorProto.FLOAT)
    ones = np.ones((4, WIDTH), np.float32)
    decoder = [cast, helper.make_node("MatMul", ["c", "ones"], ["x"])]
    decoder.append(helper.make_node("MatMul", ["x", "head"], ["logits"]))
    files = [
        save(tmp_path / "encoder.onnx", encoder, {"table": w}),
        save(tmp_path / "decoder.onnx", decoder, {"head": np.ascontiguousarray(w.T), "ones": ones}),
    ]
    report = tie_model(files, tmp_path / "tied")
    assert report.shared == {"decoder.onnx: head": "encoder.onnx: table"}
    new = [tmp_path / "tied" / path.name for path in files]
    assert len(set.union(*(ranges(path) for path in new))) == 1
    np.testing.assert_allclose(logits(new[1]), logits(files[1]), rtol=1e-5, atol=1e-3)


def test_an_existing_data_file_is_not_replaced(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    (tmp_path / "fixed.onnx.data").write_bytes(b"precious")
    with pytest.raises(BundleError, match=r"fixed\.onnx\.data: already exists"):
        tie_model(path, tmp_path / "fixed.onnx")
    assert (tmp_path / "fixed.onnx.data").read_bytes() == b"precious"
    assert not (tmp_path / "fixed.onnx").exists()


def test_entries_over_the_same_bytes_stay_that(tmp_path: Path) -> None:
    report = tie_model(broken(tmp_path / "broken.onnx", "other shape"), tmp_path / "fixed.onnx")
    again = tie_model(report.path, tmp_path / "again.onnx")
    assert again.bytes_after == report.bytes_after
    assert copies(again.path) == 1


def test_a_malformed_graph_is_the_files_fault(tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.onnx", "duplicate")
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:100]
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"broken\.onnx: damaged, the data of tensor table"):
        tie_model(path, tmp_path / "fixed.onnx")
    assert not list(tmp_path.glob(".*"))
