"""``edgetie export``: its options, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
