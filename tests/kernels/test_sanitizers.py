"""The kernels under sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from instruction_sets import SETS

from edgetie.kernels.build import PACKAGE, find_compiler

DRIVER = Path(__file__).with_name("driver.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-sanitize-recover=all", "-pthread")
ROUNDS = "300"


def compile_and_run(
    compiler: list[str], sanitizer: str, program: Path, *sources: Path
) -> subprocess.CompletedProcess[str]:
    """Compile a program with a sanitizer, and run it without arguments."""
    done = subprocess.run(
        [*compiler, *FLAGS, f"-fsanitize={sanitizer}", f"-I{PACKAGE / 'src'}", *sources,
         "-o", program, "-lm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        done = subprocess.run([program], capture_output=True, text=True, check=False)
    return done


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver and all kernels, compiled with a sanitizer."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("sanitizer")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    done = compile_and_run(compiler, request.param, folder / "probe", probe)
    if done.returncode:
        pytest.skip(f"{compiler[0]} -fsanitize={request.param}: {done.stderr.strip()[-200:]}")
    folder_of_sources = PACKAGE / "src"
    sources = (
        *(folder_of_sources / name for name in ("cpu.c", "team.c")),
        *sorted(folder_of_sources.glob("set_*.c")),
    )
    done = compile_and_run(compiler, request.param, folder / "driver", *sources, DRIVER)
    assert done.returncode == 2, done.stderr[-3000:]  # it wants arguments
    return folder / "driver"


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", SETS)
def test_the_kernels_are_clean(driver: Path, instruction_set: str) -> None:
    done = subprocess.run(
        [driver, "1", ROUNDS],
        env=os.environ | {"EDGETIE_INSTRUCTION_SET": instruction_set},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stderr == ""
    if done.stdout.strip() != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
