"""The quickstart: what it announces, does and prints, on a small model and on the real one."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from click.testing import CliRunner
from command_line import edgetie
from runtime_models import byte_tokenizer

from edgetie import downloads
from edgetie.errors import EdgetieError
from edgetie.quickstart import (
    ACCURACY_TOKENS,
    PROMPTS,
    QuickstartReport,
    quickstart,
)
from edgetie.report.tables import verdict
from edgetie_cli.printing.quickstart import announcement, print_quickstart


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> QuickstartReport:
    """Of a random model with a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("quickstart")
    models.transformers_model("Llama").save_pretrained(directory / "model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), pad_token="<pad>")
    tokenizer.save_pretrained(directory / "model")
    return quickstart(
        directory / "out", model=str(directory / "model"), repeat=1, accuracy_tokens=100
    )


@pytest.mark.slow
def test_every_step_reports(small: QuickstartReport) -> None:
    assert small.exported.bundle.directory.name == "fp32"
    assert small.quantized.bundle.directory.name == "int8"
    for inspection in (small.inspected_fp32, small.inspected_int8):
        (tie,) = inspection.ties
        assert tie.file == 1
    assert 0 < small.accuracy.tokens <= 100
    assert small.latency is not None
    assert small.latency.against is not None
    assert [prompt for prompt, _ in small.answers] == list(PROMPTS)


@pytest.mark.slow
def test_the_summary_compares_and_ends_with_commands(
    small: QuickstartReport, capsys: pytest.CaptureFixture[str]
) -> None:
    print_quickstart(small)
    text = capsys.readouterr().out
    for part in (
        "size on disk", "memory in use", "tokens/s", "same likeliest token", "perplexity on",
        "copies of the embedding", "onnxruntime", verdict(small.accuracy),
    ):  # fmt: skip
        assert part in text
    assert "nan" not in text
    commands = [line.partition("edgetie ")[2] for line in text.splitlines()[-4:]]
    assert [line.split()[0] for line in commands] == ["generate", "check", "deploy", "quickstart"]
    assert commands[0].split()[1] == str(small.quantized.bundle.directory)


def test_it_says_what_it_downloads_and_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = announcement(None, ACCURACY_TOKENS)
    assert f"{downloads.MODEL_PACKAGE} (93 MB)" in text
    assert f"{downloads.TEXT_PACKAGE} (3 MB)" in text
    assert "up to 4 minutes" in text
    assert "up to 17 minutes" in announcement(None, 20_480)
    assert "MB" not in announcement("./mine", ACCURACY_TOKENS)
    cache = tmp_path / "edgetie"
    cache.mkdir()
    for name in (downloads.MODEL_FILE, downloads.TEXT_FILE):
        (cache / name).touch()
    assert announcement(None, ACCURACY_TOKENS).startswith("Everything is downloaded already.")


def test_a_wrong_number_of_tokens_fails_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(EdgetieError, match="accuracy_tokens=1: must be 2 or more"):
        quickstart(tmp_path / "out", accuracy_tokens=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bundles_are_not_overwritten(small: QuickstartReport) -> None:
    from edgetie_cli.main import cli

    output = small.exported.bundle.directory.parent
    done = CliRunner().invoke(cli, ["quickstart", "--output", str(output), "--model", "x"])
    assert done.exit_code != 0
    assert (output / "int8" / "model.onnx").is_file()


@pytest.mark.slow
def test_the_real_model_passes_in_one_command(tmp_path: Path) -> None:
    done = edgetie("quickstart", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "minutes on two slow cores" in done.stderr
    data = json.loads(done.stdout)
    assert set(data) == {"logit_error", "tie_groups", "check", "bench", "answers"}
    assert data["check"]["passed"] is True
    assert data["check"]["tokens"] > 2000
    assert data["check"]["top1_agreement_error"] > 0
    assert "Paris" in data["answers"][0]["answer"]
