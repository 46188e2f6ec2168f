"""The package as others install it: normal and editable, and no module called ``cli``."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

_PROBE = """
import importlib.util, edgetie, edgetie.kernels, edgetie_cli.main
assert importlib.util.find_spec("cli") is None, "a module called cli was installed"
assert edgetie.kernels.explain_absence() is None, edgetie.kernels.explain_absence()
print(edgetie.__file__)
"""


@pytest.mark.parametrize("editable", [False, True])
def test_install(tmp_path: Path, editable: bool) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True, system_site_packages=False)
    python = environment / "bin" / "python"
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    target = ["--editable", str(checkout)] if editable else [str(checkout)]
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *target]
    subprocess.run(command, check=True)
    # the dependencies are those of this interpreter, behind the new environment's own
    inherited = [path for path in sys.path if "site-packages" in path]
    (next(environment.glob("lib/python*/site-packages")) / "inherited.pth").write_text(
        "\n".join(inherited)
    )
    done = subprocess.run(
        [str(python), "-c", _PROBE], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    shown = subprocess.run(
        [str(environment / "bin" / "edgetie"), "--help"], capture_output=True, text=True, check=True
    )
    assert "edgetie quickstart" in shown.stdout


def test_without_a_compiler_the_install_goes_on(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "setuptools>=77", "lazy-loader"], check=True)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    command = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(checkout)]
    environment_variables = os.environ | {"CC": "no-such-compiler"}
    subprocess.run(command, cwd=tmp_path, env=environment_variables, check=True)
    (wheel,) = tmp_path.glob("edgetie-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        reason = archive.read("edgetie/kernels/not_built.txt").decode()
    assert reason == "no C compiler: cc, gcc, clang or the package ziglang\n"


def test_the_source_distribution_holds_the_sources_in_c(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, stdout=subprocess.DEVNULL, check=True
    )
    (archive,) = tmp_path.glob("edgetie-*.tar.gz")
    with tarfile.open(archive) as content:
        inside = {name.partition("/")[2] for name in content.getnames()}
    sources = checkout.glob("edgetie/kernels/src/*")
    assert {"setup.py", *(str(path.relative_to(checkout)) for path in sources)} <= inside
