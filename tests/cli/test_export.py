"""``edgetie export``: its options, and what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from adapter_models import AdaptedBundle, change_settings, source
from click.testing import CliRunner
from command_line import edgetie, refused

from edgetie_cli.export import command

_MODULE = """
from torch import nn
import torch

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(96, 16)
        self.head = nn.Linear(16, 96, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids):
        return self.head(self.tokens(input_ids).cumsum(1))

def build():
    torch.manual_seed(0)
    return Model().eval()
"""


def test_help_lists_options_with_their_defaults() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    for text in ("--target", "--precision [fp32|fp16]", "--logits [last|all]", "--output"):
        assert text in result.output


def test_unknown_choices_and_paths_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["x", "--output", "y", "--precision", "int4"])
    assert result.exit_code == 2
    refused(edgetie("export", "no/such/model", "--output", "out", cwd=tmp_path), "no such file")


@pytest.mark.slow
def test_json_of_an_export(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MODULE)
    done = edgetie("export", "mine:build", "--output", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert Path(data["bundle"]).name == "out"
    assert data["precision"] == "fp32"
    assert data["logit_error"]["relative"] < 1e-5
    assert (tmp_path / "out" / "model.onnx").exists()


def test_adapters_are_refused_before_torch_is_imported(
    adapted_bundle: AdaptedBundle, tmp_path: Path
) -> None:
    source().module.save_pretrained(tmp_path / "base")
    shutil.copytree(adapted_bundle.folders["small"], tmp_path / "dora")
    change_settings(tmp_path / "dora", use_dora=True)
    small = f"small={adapted_bundle.folders['small']}"
    for options, message in (
        (["--adapter", "small"], "--adapter small: write NAME=DIR"),
        (["--adapter", small, "--adapter", small], "there is an adapter small already"),
        (["--adapter", "a/b=base"], "--adapter a/b: not a name for an adapter"),
        (["--adapter", "one=base"], "no adapter_config.json in this directory"),
        (["--adapter", "one=dora"], "scales whole weights (DoRA), which cannot be added"),
    ):
        refused(edgetie("export", "base", "--output", "b", *options, cwd=tmp_path), message)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_adapters_from_export_to_generate_and_check(
    adapted_bundle: AdaptedBundle, tmp_path: Path
) -> None:
    source().module.save_pretrained(tmp_path / "base")
    adapters = [f"--adapter={name}={folder}" for name, folder in adapted_bundle.folders.items()]
    done = edgetie("export", "base", "--output", "fp32", *adapters, cwd=tmp_path)
    assert "adapter      small: rank 2 in 4 layers, logit error" in done.stdout, done.stderr
    quantized = edgetie("quantize", "fp32", "--output", "int8", "--json", cwd=tmp_path)
    assert quantized.returncode == 0, quantized.stderr
    shown = json.loads(edgetie("inspect", "int8", "--json", cwd=tmp_path).stdout)
    assert list(shown["adapters"]) == ["small", "large"]
    assert (
        "adapter      large: rank 8 in 14 layers" in edgetie("inspect", "int8", cwd=tmp_path).stdout
    )
    for reference, adapter in (
        ("base", f"large={adapted_bundle.folders['large']}"), ("fp32", "large"), ("fp32", "small"),
    ):  # fmt: skip
        options = ["--reference", reference, "--adapter", adapter, "--json", "--max-kl", "1"]
        done = edgetie("check", "int8", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["bundle"].startswith("int8 with ")
        assert report["relative_error"] < 0.1
    wrong = edgetie("check", "int8", "--reference", "fp32", "--adapter", "poet", cwd=tmp_path)
    refused(wrong, "--adapter poet", "has no such adapter; it has small, large")
    unnamed = edgetie("check", "int8", "--reference", "base", "--adapter", "small", cwd=tmp_path)
    refused(unnamed, "base: is not a bundle; name the directory of adapter small")
