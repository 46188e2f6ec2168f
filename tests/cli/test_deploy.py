"""The ``deploy`` command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_models as tiny
from click.testing import CliRunner

from edgetie.bundle.bundle import open_bundle
from edgetie.bundle.manifest import bare_manifest, write_manifest
from edgetie_cli.deploy import command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tiny.write_chat_bundle(tmp_path / "bundle")
    manifest = open_bundle(directory).manifest
    described = bare_manifest(directory / "model.onnx").signature
    manifest.signature = replace(manifest.signature, inputs=described.inputs)
    write_manifest(directory, manifest)
    return directory


def test_it_prints_how_to_start(bundle: Path, tmp_path: Path) -> None:
    options = [str(bundle), "--for", "python", "--output", str(tmp_path / "my app")]
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 0
    assert "fp32 for python" in done.stdout
    assert f"  cd '{tmp_path / 'my app'}'" in done.stdout
    assert "  pip install -r requirements.txt" in done.stdout


def test_json_and_notes(bundle: Path, tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    manifest = open_bundle(bundle).manifest
    (bundle / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_manifest(bundle, manifest)
    options = [str(bundle), "--for", "web", "--output", str(tmp_path / "app"), "--json"]
    done = CliRunner().invoke(command, options)
    report = json.loads(done.stdout)
    assert report["target"] == "web"
    assert report["bytes"] == sum(report["files"].values())
    assert "note: its chat template writes the date" in done.stderr


def test_unknown_targets_are_refused(bundle: Path, tmp_path: Path) -> None:
    options = [str(bundle), "--for", "mars", "--output", str(tmp_path / "app")]
    done = CliRunner().invoke(command, options)
    assert done.exit_code == 2
    assert "--for" in done.stderr


def test_force_is_offered_and_replaces(bundle: Path, tmp_path: Path) -> None:
    options = [str(bundle), "--for", "node", "--output", str(tmp_path / "app"), "--quiet"]
    assert CliRunner().invoke(command, options).exit_code == 0
    (tmp_path / "app" / "node_modules").mkdir()
    assert "already exists" in str(CliRunner().invoke(command, options).exception)
    assert CliRunner().invoke(command, [*options, "--force"]).exit_code == 0
    assert not (tmp_path / "app" / "node_modules").exists()


def test_help_waits_for_no_library() -> None:
    code = (
        "import sys; from edgetie_cli.deploy import command\n"
        "command(['--help'], standalone_mode=False)\n"
        "print([n for n in ('numpy', 'onnx', 'onnxruntime', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--force" in done.stdout
    assert done.stdout.endswith("[]\n")
