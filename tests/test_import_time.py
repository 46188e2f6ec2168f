"""What ``import edgetie`` and running a bundle import: a device has no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import runtime_models as tiny

import edgetie

HEAVY = ("torch", "transformers", "onnxscript", "matplotlib", "llguidance")


def imported_by(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter has imported after ``code``."""
    report = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    result: list[str] = eval(done.stdout.strip().splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "module",
    [
        "edgetie",
        "edgetie.runtime",
        "edgetie.bundle.bundle",
        "edgetie.ties.groups",
        "edgetie.deploy.deploy",
        "edgetie.npu.fix_shapes",
        "edgetie.npu.compile",
    ],
)
def test_library_imports_are_light(module: str) -> None:
    assert imported_by(f"import {module}") == []


def test_runtime_package_waits_for_onnxruntime() -> None:
    code = "import sys, edgetie.runtime; assert 'onnxruntime' not in sys.modules"
    assert imported_by(code) == []


def test_public_names_to_run_a_bundle_need_no_torch() -> None:
    stub = (Path(edgetie.__file__).with_name("__init__.pyi")).read_text(encoding="utf-8")
    rooms = "bundle|errors|graph|progress|providers|runtime|ties"
    names = re.findall(rf"^from \.(?:{rooms})\S* import (\w+)", stub, re.MULTILINE)
    assert {"Decoder", "generate", "open_session", "PROVIDERS"} <= set(names)
    assert imported_by(f"import edgetie; [getattr(edgetie, name) for name in {names!r}]") == []


def test_every_public_name_exists_and_is_listed() -> None:
    assert dir(edgetie) == sorted(edgetie.__all__)
    assert {"Conversation", "Sampling", "__version__", "check_model"} <= set(dir(edgetie))
    for name in edgetie.__all__:
        assert getattr(edgetie, name) is not None


def test_the_version_is_that_of_the_package() -> None:
    assert edgetie.__version__ == version("edgetie")


def test_generate_command_needs_no_torch(tmp_path: Path) -> None:
    tiny.write_chat_bundle(tmp_path / "bundle")
    arguments = ["edgetie", "generate", str(tmp_path / "bundle"), "--prompt", "abc", "--quiet"]
    code = f"""
import sys
sys.argv = {arguments!r}
from edgetie_cli.main import cli
cli.main(standalone_mode=False)
"""
    assert imported_by(code) == []


def test_exporting_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['export', 'x', '-o', 'y'];"
        "import importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a);"
        "from edgetie_cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "edgetie: exporting needs torch; in the checkout of edgetie run: "
    )
