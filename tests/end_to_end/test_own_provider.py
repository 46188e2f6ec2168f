"""edgetie's own provider as users meet it: chosen by itself, named in reports, absent, damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnxruntime_genai as og
import pytest
import runtime_models as tiny
from command_line import edgetie, refused
from own_provider import (
    OWN_NAME,
    needs_own_provider,
    package_with_library,
    write_int8,
    write_large_int8,
)
from process_memory import mapping_of

from edgetie.export.exporter import ExportReport
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.harness.ties.inspect import inspect_model
from edgetie.kernels import get_library_path, instruction_set
from edgetie.providers.availability import list_availability
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session

pytestmark = needs_own_provider

CPU = "CPUExecutionProvider"
PROMPT = [5, 77, 31]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_int8(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model without a node that the provider takes."""
    return tiny.write_plain(tmp_path_factory.mktemp("plain"))


def greedy(bundle: Path, provider: str, count: int = 16) -> list[int]:
    session = open_session(bundle, provider=provider, threads=2)
    steps = generate(session, [PROMPT], max_new_tokens=count, stop_token_ids=frozenset())
    return [int(step.tokens[0]) for step in steps]


def test_reports_name_the_provider_that_ran(int8: Path, plain: Path) -> None:
    report = bench_model(int8, against=plain, prompt_tokens=4, new_tokens=2, repeat=1)
    assert report.provider == "edgetie"
    assert report.nodes_per_provider[OWN_NAME] > 5
    assert report.against is not None
    assert report.against.provider == "cpu"
    assert set(report.against.nodes_per_provider) == {CPU}
    fp32 = int8.parent / "fp32"
    checked = check_model(int8, str(fp32), max_tokens=64, strict=True)
    assert (checked.provider, checked.passed) == ("edgetie", True)
    assert checked.nodes_per_provider[OWN_NAME] > 5
    assert inspect_model(int8).provider == "edgetie"
    assert inspect_model(int8, provider="cpu").provider == "cpu"
    assert inspect_model(plain).provider == "cpu"


def test_commands_say_which_provider_ran(int8: Path, plain: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = edgetie(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    prompt = ("--prompt", "hello", "--max-new-tokens", 3)
    nodes = open_session(int8).nodes_per_provider
    expected = f"edgetie ({nodes[OWN_NAME]} of {sum(nodes.values())} nodes)"
    assert run("generate", int8, *prompt).stderr.endswith(f"run by {expected}\n")
    answer = json.loads(run("generate", int8, *prompt, "--json").stdout)
    assert (answer["provider"], answer["nodes_per_provider"]) == ("edgetie", nodes)
    on_cpu = json.loads(run("generate", int8, *prompt, "--json", "--provider", "cpu").stdout)
    assert (on_cpu["provider"], list(on_cpu["nodes_per_provider"])) == ("cpu", [CPU])
    benched = run("bench", int8, "--prompt-tokens", 4, "--new-tokens", 2, "--repeat", 1)
    assert expected in benched.stdout
    assert benched.stderr.count("edgetie:") == 0, "nodes of the CPU provider are no warning"
    checked = run("check", int8, "--reference", int8.parent / "fp32", "--max-tokens", 64)
    assert ", run by edgetie (" in checked.stdout
    inspected = run("inspect", plain)
    assert "provider     cpu (" in inspected.stdout


def test_a_model_without_nodes_for_it_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    done = edgetie("bench", plain, "--provider", "edgetie", "--quiet", cwd=tmp_path)
    refused(done, "--provider edgetie: took none of the", "nodes of")


def test_it_is_listed_with_its_instruction_set() -> None:
    row = next(each for each in list_availability() if each.row.name == "edgetie")
    assert (row.where, row.problem) == ("here", "")
    assert row.instruction_set == instruction_set()


@pytest.mark.parametrize("kind", ["absent", "cut short"])
def test_without_a_library_that_loads(kind: str, int8: Path, tmp_path: Path) -> None:
    """The CPU provider runs, quietly; who asks for edgetie's is told why it cannot."""
    library = None if kind == "absent" else Path(get_library_path()).read_bytes()[: 1 << 14]
    environment = package_with_library(tmp_path, library)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return edgetie(*arguments, cwd=tmp_path, env=environment)

    prompt = ("--prompt", "hello", "--max-new-tokens", 3)
    done = run("generate", int8, *prompt, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["provider"] == "cpu"
    why = "its library was not built" if kind == "absent" else "its library does not load"
    refused(run("generate", int8, *prompt, "--provider", "edgetie"), "--provider edgetie", why)
    assert f"edgetie: {why}" in run("providers").stdout


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_library_that_onnxruntime_refuses(int8: Path, tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text('const char *edgetie_instruction_set(void) { return ""; }')
    subprocess.run(
        ["cc", "-shared", "-fPIC", "other.c", "-o", "other.so"], cwd=tmp_path, check=True
    )
    environment = package_with_library(tmp_path, (tmp_path / "other.so").read_bytes())
    command = ("generate", int8, "--prompt", "hello", "--json")
    done = edgetie(*command, cwd=tmp_path, env=environment)
    assert json.loads(done.stdout)["provider"] == "cpu"
    (line,) = done.stderr.splitlines()
    assert "does not load" in line
    assert line.endswith("; cpu runs instead")
    done = edgetie(*command, "--provider", "edgetie", cwd=tmp_path, env=environment)
    refused(done, "--provider edgetie", "does not load")


def test_a_runtime_that_is_too_old(int8: Path, tmp_path: Path) -> None:
    script = """if True:
        import onnxruntime, sys
        onnxruntime.__version__ = "1.23.2"
        from edgetie_cli.main import main
        main()"""
    command = [sys.executable, "-c", script, "generate", str(int8), "--prompt", "hello"]
    done = subprocess.run(
        [*command, "--provider", "edgetie"], capture_output=True, text=True, check=False
    )
    refused(done, "--provider edgetie: needs onnxruntime 1.24 or newer, and 1.23.2 is installed")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["provider"] == "cpu"


def test_several_sessions_at_once(int8: Path) -> None:
    """Opened and run by threads of a process in which the library is not registered yet."""
    script = """if True:
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from edgetie import generate, open_session

        def run(_):
            session = open_session(sys.argv[1], threads=2)
            assert session.provider == "edgetie"
            steps = generate(session, [[5, 77, 31]], max_new_tokens=16, stop_token_ids=frozenset())
            return [int(step.tokens[0]) for step in steps]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(run, range(24)))
        assert all(tokens == found[0] for tokens in found)
        print(found[0])"""
    command = [sys.executable, "-c", script, str(int8)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == greedy(int8, "edgetie")


@linux
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_sessions_that_are_closed_leave_nothing(int8: Path, count: int) -> None:
    script = """if True:
        import json, sys
        from pathlib import Path
        from edgetie import generate, open_session
        from edgetie.runtime.memory import read_memory, release_heap

        def run(count):
            for _ in range(count):
                session = open_session(sys.argv[1], provider="edgetie", threads=2)
                list(generate(session, [[5, 77, 31]], max_new_tokens=2))
            del session
            release_heap()
            entries = [len(list(Path("/proc/self", n).iterdir())) for n in ("fd", "task")]
            return [read_memory().anonymous, *entries]

        run(20 + int(sys.argv[2]) // 2)  # until the heap has found its size
        print(json.dumps([run(1), run(int(sys.argv[2]))]))"""
    command = [sys.executable, "-c", script, str(int8), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    (memory, *others), (memory_after, *others_after) = json.loads(done.stdout)
    assert others_after == others
    assert memory_after - memory < (1 << 20) + (1 << 10) * count


@linux
def test_a_large_table_is_read_where_it_is_mapped(tmp_path: Path) -> None:
    """What the CPU provider packs into private memory."""
    bundle = write_large_int8(tmp_path)
    (tie,) = inspect_model(bundle).ties
    assert (tie.file, tie.optimized, tie.memory) == (1, 1, 1)
    assert tie.resident is not None
    assert tie.resident.anonymous < 0.5 * tie.group.bytes
    assert tie.resident.file_mapped > 0.9 * tie.group.bytes
    (packed,) = inspect_model(bundle, provider="cpu").ties
    assert packed.resident is not None
    assert packed.resident.anonymous > 0.9 * tie.group.bytes


HOLD = """if True:
    import sys
    import numpy as np
    from edgetie import open_session

    session = open_session(sys.argv[1], threads=1)
    session.ort.run(None, {"input_ids": np.zeros((1, 1), np.int64)})
    print(session.provider, flush=True)
    sys.stdin.read()"""


@linux
def test_two_processes_share_the_pages(tmp_path: Path) -> None:
    bundle = write_large_int8(tmp_path)
    data = bundle / "model.onnx.data"
    command = [sys.executable, "-c", HOLD, str(bundle)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        for process in (one, two):
            assert process.stdout.readline() == "edgetie\n"
        found = [mapping_of(data.resolve(), process.pid) for process in (one, two)]
    table = 34_000 * 256
    assert all(sizes["Rss:"] > table for sizes in found)
    assert sum(sizes["Pss:"] for sizes in found) < 1.1 * data.stat().st_size
    assert all(sizes["Anonymous:"] == 0 for sizes in found)


@linux
@pytest.mark.slow
def test_private_memory_of_a_real_model(real_int8: Path) -> None:
    report = bench_model(real_int8, repeat=1)
    assert report.provider == "edgetie"
    assert report.copies_in_memory == 1
    assert report.anonymous_bytes < 30 << 20
    assert report.rss_bytes < 1.2 * report.file_bytes


@cache
def register_with_genai() -> None:
    """Register the library; a process can do so once."""
    og.register_execution_provider_library(OWN_NAME, get_library_path())


def genai_tokens(bundle: Path, prompt: list[int], count: int) -> list[int]:
    """What onnxruntime-genai generates with the provider, which ``genai_config.json`` names."""
    path = bundle / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["provider_options"] = [{OWN_NAME: {}}]
    path.write_text(json.dumps(config), encoding="utf-8")
    register_with_genai()
    model = og.Model(str(bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    tokens: list[int] = []
    while not generator.is_done() and len(tokens) < count:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def test_onnxruntime_genai_generates_the_same_tokens(
    exported: Callable[[str], ExportReport], tmp_path: Path
) -> None:
    quantize_model(exported("Llama").bundle.directory, tmp_path / "int8")
    expected = greedy(tmp_path / "int8", "edgetie")
    assert genai_tokens(tmp_path / "int8", PROMPT, len(expected)) == expected


@pytest.mark.slow
def test_onnxruntime_genai_generates_a_real_text(real_int8: Path, tmp_path: Path) -> None:
    shutil.copytree(real_int8, tmp_path / "int8")
    expected = greedy(tmp_path / "int8", "edgetie", 64)
    assert genai_tokens(tmp_path / "int8", PROMPT, len(expected)) == expected
