"""Graphs of fixed shapes, on the CPU and on the simulator of Qualcomm's NPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import runtime_models
import torch

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.names import MODEL, PREFILL
from edgetie.errors import BundleError, EdgetieError, ProviderError
from edgetie.export.exporter import export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.accuracy.samples import BUILT_IN_TEXT
from edgetie.npu.compile import compile_bundle
from edgetie.npu.fix_shapes import fix_shapes
from edgetie.providers.environments import environment_directory, install_environment
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.fixed_shape_decoder import FixedShapeDecoder
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.sources.source import Source

pytestmark = pytest.mark.slow

CONTEXT = 64
TEXT = BUILT_IN_TEXT[:300]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tied Llama that has learned a text, so that it is sure of its tokens."""
    root = tmp_path_factory.mktemp("npu")
    tokenizer = runtime_models.byte_tokenizer()
    ids = torch.tensor(tokenizer.encode(TEXT).ids)
    model = models.transformers_model("Llama")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    starts = torch.arange(len(ids) - CONTEXT)
    for _ in range(180):
        rows = starts[torch.randperm(len(starts))[:8]][:, None] + torch.arange(CONTEXT)
        optimizer.zero_grad()
        model(input_ids=ids[rows], labels=ids[rows]).loss.backward()
        optimizer.step()

    def save(target: Path) -> None:
        tokenizer.save(str(target / "tokenizer.json"))

    source = Source("factory", "learned", model.eval(), model.config, save)
    export_model(source, root / "fp32", target="mobile-npu")
    quantize_model(root / "fp32", root / "int8", target="mobile-npu")
    quantize_model(root / "fp32", root / "weights", scheme="int8")
    return root


@pytest.fixture(scope="module")
def fixed(decoder: Path) -> Path:
    """Both graphs, a piece of a prompt with 16 tokens."""
    fix_shapes(decoder / "fp32", decoder / "fixed", prompt_tokens=16, context=CONTEXT)
    return decoder / "fixed"


def test_two_graphs_share_one_file_and_one_table(decoder: Path, fixed: Path) -> None:
    bundle = open_bundle(fixed, hashes=True)
    assert [path.name for path in bundle.model_paths] == [PREFILL, MODEL]
    graphs = [onnx.load(path, load_external_data=False).graph for path in bundle.model_paths]
    data = decoder / "fp32" / "model.onnx.data"
    assert (fixed / "model.onnx.data").stat().st_size == data.stat().st_size
    tables = [
        [tensor for tensor in graph.initializer if models.VOCAB in tensor.dims] for graph in graphs
    ]
    assert [len(table) for table in tables] == [1, 1]
    assert tables[0][0].external_data == tables[1][0].external_data
    for graph, tokens in zip(graphs, (16, 1), strict=True):
        sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
        assert sizes["input_ids"] == [1, tokens]
        assert all(size for shape in sizes.values() for size in shape)
    (tie,) = (group for group in bundle.manifest.ties if group.shape[0] == models.VOCAB)
    assert {(use.op_type, use.file) for use in tie.uses} == {
        (operator, file) for operator in ("Gather", "Gemm") for file in (PREFILL, MODEL)
    }


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_same_tokens_as_with_open_shapes(decoder: Path, fixed: Path, length: int) -> None:
    ids = np.random.default_rng(length).integers(3, models.VOCAB, length).tolist()
    open_shapes, in_pieces = open_session(decoder / "fp32"), open_session(fixed)
    expected = [s.tokens for s in generate(open_shapes, [ids], max_new_tokens=20)]
    assert [s.tokens for s in generate(in_pieces, [ids], max_new_tokens=20)] == expected


@pytest.mark.parametrize("lengths", [(5, 1, 18), (16, 3), (7, 40)])
def test_a_prompt_in_several_parts(decoder: Path, fixed: Path, lengths: tuple[int, ...]) -> None:
    ids = np.random.default_rng(1).integers(3, models.VOCAB, (1, sum(lengths)))
    there = Decoder(open_session(decoder / "fp32"), 1, CONTEXT)
    here = FixedShapeDecoder(open_session(fixed), 1, CONTEXT)
    expected = there.prefill(ids)
    for part in np.split(ids, np.cumsum(lengths)[:-1], axis=1):
        found = here.prefill(part)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert here.length == sum(lengths)


def test_inputs_whose_sizes_have_other_names(tmp_path: Path) -> None:
    """ALiBi makes the length of Bloom's mask a sum."""
    model = models.transformers_model("Bloom")
    source = Source("transformers", "Bloom", model, model.config, lambda target: None)
    export_model(source, tmp_path / "open", target="mobile-npu")
    fix_shapes(tmp_path / "open", tmp_path / "fixed", prompt_tokens=4, context=32)
    ids = [list(range(5, 16))]
    opened, fixed = (open_session(tmp_path / name) for name in ("open", "fixed"))
    assert fixed.bundle.has_fixed_shapes
    found, wanted = (
        [step.tokens.tolist() for step in generate(session, ids, max_new_tokens=12)]
        for session in (fixed, opened)
    )
    assert found == wanted


def test_the_window_ends(fixed: Path) -> None:
    with pytest.raises(EdgetieError, match=f"accepts {CONTEXT} tokens"):
        list(generate(open_session(fixed), [[5] * (CONTEXT + 1)], max_new_tokens=1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((64, 64), "must be longer than prompt_tokens"),
        ((0, 64), "at least 1"),
        ((16, 4096), "at most 128"),
    ],
)
def test_sizes_that_do_not_fit(
    decoder: Path, tmp_path: Path, sizes: tuple[int, int], message: str
) -> None:
    with pytest.raises(EdgetieError, match=message):
        fix_shapes(decoder / "fp32", tmp_path / "out", prompt_tokens=sizes[0], context=sizes[1])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fixed(decoder: Path, fixed: Path, exported: Any, tmp_path: Path) -> None:
    for source, message in (
        (exported("Llama").bundle.directory, "export again for target mobile-npu"),
        (fixed, "fixed already"),
        (exported("cacheless").bundle.directory, "not a decoder with a KV cache"),
    ):
        with pytest.raises(BundleError, match=message):
            fix_shapes(source, tmp_path / "out", prompt_tokens=1, context=64)
    with pytest.raises(EdgetieError, match="quantize first, then fix"):
        quantize_model(fixed, tmp_path / "out")
    with pytest.raises(BundleError, match="first run edgetie fix-shapes"):
        compile_bundle(decoder / "fp32", tmp_path / "out")
    with pytest.raises(ProviderError, match="cannot save compiled graphs"):
        compile_bundle(fixed, tmp_path / "out", provider="cpu")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def qnn() -> None:
    """The environment of QNN, made once."""
    if not (environment_directory("qnn") / "environment.json").is_file():
        try:
            install_environment("qnn")
        except ProviderError as error:
            pytest.skip(str(error))


@pytest.mark.usefixtures("qnn")
@pytest.mark.parametrize(("kind", "piece"), [("fp32", 16), ("int8", 8), ("weights", 1)])
def test_the_npu_finds_the_same_tokens(decoder: Path, kind: str, piece: int) -> None:
    target = decoder / f"{kind}-{piece}"
    fix_shapes(decoder / kind, target, prompt_tokens=piece, context=CONTEXT)
    report = check_model(
        target, str(decoder / kind), provider="qnn", text=TEXT, max_tokens=48, greedy_prompts=1,
        greedy_tokens=16,
    )  # fmt: skip
    nodes = report.nodes_per_provider
    assert nodes["QNNExecutionProvider"] >= 0.9 * sum(nodes.values())
    assert report.top1_agreement > 0.95  # it is not sure of a text's first tokens
    assert report.greedy_agreement == 1.0
    assert report.relative_error < 0.05


@pytest.mark.usefixtures("qnn")
def test_what_is_compiled_loads_and_agrees(decoder: Path, fixed: Path, tmp_path: Path) -> None:
    fix_shapes(decoder / "int8", tmp_path / "one", prompt_tokens=1, context=CONTEXT)
    one = compile_bundle(tmp_path / "one", tmp_path / "compiled")
    assert any(node.op_type == "EPContext" for node in onnx.load(one.model_path).graph.node)
    reports = [
        check_model(
            bundle, str(decoder / "fp32"), provider="qnn", text=TEXT, max_tokens=48,
            greedy_prompts=1, greedy_tokens=16,
        )
        for bundle in (tmp_path / "one", one)
    ]  # fmt: skip
    assert len({(report.max_abs_error, report.mean_abs_error) for report in reports}) == 1
    assert [report.greedy_agreement for report in reports] == [1.0, 1.0]

    both = compile_bundle(fixed, tmp_path / "both")
    binaries = [path for path in both.directory.iterdir() if path.suffix == ".bin"]
    fix_shapes(decoder / "fp32", tmp_path / "alone", prompt_tokens=1, context=CONTEXT)
    alone = compile_bundle(tmp_path / "alone", tmp_path / "alone-compiled")
    (least,) = (p.stat().st_size for p in alone.directory.iterdir() if p.suffix == ".bin")
    assert len(binaries) == 1
    assert binaries[0].stat().st_size < 1.25 * least  # the weights of two graphs, once

    with pytest.raises(ProviderError, match="is compiled for qnn; pass provider='qnn'"):
        open_session(one)
    with pytest.raises(BundleError, match="compiled already"):
        compile_bundle(one, tmp_path / "again")


@pytest.mark.usefixtures("qnn")
def test_open_shapes_on_an_npu_are_refused_in_one_line(decoder: Path) -> None:
    with pytest.raises(ProviderError, match="fix them first") as raised:
        check_model(decoder / "fp32", str(decoder / "fp32"), provider="qnn", max_tokens=8)
    assert "\n" not in str(raised.value)
