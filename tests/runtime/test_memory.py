"""Reading memory, and releasing pages of mapped files without losing anything."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state
from runtime_models import write_packed

from edgetie.runtime.memory import MappedFiles, read_memory, release_file_pages, sample_memory
from edgetie.runtime.session import open_session

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
SIZE = 32 << 20


@linux
def test_anonymous_memory_is_counted() -> None:
    before = read_memory()
    block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[:] = b"x" * SIZE
    after = read_memory()
    assert after.anonymous - before.anonymous > SIZE * 0.9
    assert after.rss == after.anonymous + after.file_mapped
    assert after.peak >= after.rss
    block.close()
    assert read_memory().peak >= before.rss + SIZE * 0.9


@linux
def test_released_pages_are_gone_and_readable_again(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    for file in (path, other):
        file.write_bytes(b"w" * SIZE)
    with path.open("rb") as file, other.open("rb") as kept:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        untouched = mmap.mmap(kept.fileno(), 0, access=mmap.ACCESS_READ)
    assert sum(mapped[::4096]) == sum(untouched[::4096]) == ord("w") * SIZE // 4096
    before = read_memory()
    assert release_file_pages([path]) == SIZE
    assert before.file_mapped - read_memory().file_mapped == pytest.approx(SIZE, rel=0.1)
    assert sum(mapped[::4096]) == ord("w") * SIZE // 4096
    assert release_file_pages([tmp_path / "absent"]) == 0


@linux
def test_pages_that_were_written_to_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * SIZE)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    mapped[SIZE // 2] = ord("!")
    release_file_pages([path])
    assert mapped[SIZE // 2] == ord("!")
    assert path.read_bytes()[SIZE // 2] == ord("w")


@linux
def test_mappings_that_were_there_before_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * SIZE)
    with path.open("rb") as file:
        first = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        earlier = MappedFiles([path])
        second = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    added = earlier.added()
    assert sum(first[::4096]) == sum(second[::4096])
    added.release()
    assert (earlier.resident_bytes(), added.resident_bytes()) == (SIZE, 0)


@linux
def test_a_session_releases_no_addresses_of_an_earlier_one(tmp_path: Path) -> None:
    """Where that has ended, the cache of a decoder may lie."""
    directory = write_packed(tmp_path)
    first, second = (open_session(directory, provider="cpu") for _ in range(2))
    files = second.embedding_files
    assert files is not None
    del first
    gc.collect()
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    data = str(directory / "model.onnx.data")
    mapped = {line.split()[0] for line in maps if line.endswith(data)}
    assert mapped
    assert {f"{start:x}-{start + size:x}" for start, size, _ in files._ranges} == mapped


def test_sampler_sees_a_peak_in_the_middle() -> None:
    with sample_memory(interval=0.001) as samples:
        block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no heap's rest
        block[:] = b"x" * SIZE
        seen = len(samples)
        while len(samples) < seen + 3:
            pass
        block.close()
    times = [seconds for seconds, _ in samples]
    assert times == sorted(times)
    first = samples[0][1]
    assert max(use.rss for _, use in samples) >= first.rss + SIZE * 0.9


@pytest.mark.slow
@linux
def test_weights_stay_mapped_and_are_not_kept_twice(real_bundle: Path) -> None:
    data = real_bundle / "model.onnx.data"
    session = open_session(real_bundle, threads=2)
    assert session.embedding_files is not None
    assert release_file_pages([data]) < data.stat().st_size * 0.01
    before = read_memory()
    every = open_session(real_bundle, threads=2, logits="all")
    grown = read_memory().anonymous - before.anonymous
    assert every.left_aligned_logits
    assert grown < data.stat().st_size * 1.1  # packed once, and nothing read into memory besides


@pytest.mark.slow
@linux
def test_code_that_starts_a_session_is_let_go(real_bundle: Path) -> None:
    library = MappedFiles([onnxruntime_pybind11_state.__file__])
    open_session(real_bundle, threads=2, release=False)
    before = library.resident_bytes()
    session = open_session(real_bundle, threads=2)
    assert library.resident_bytes() < before / 2
    assert len(session.outputs) > 1


@pytest.mark.slow
@linux
def test_memory_that_ends_is_one_line(real_bundle: Path) -> None:
    """Room to map the weights, and none to pack them."""
    script = """if True:
        import resource, numpy.random, onnxruntime, psutil, tokenizers
        from edgetie_cli.main import main
        most = psutil.Process().memory_info().data + (200 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        main()"""
    command = [sys.executable, "-c", script, "generate", str(real_bundle), "--prompt", "Hello"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "not enough memory; take" in line
