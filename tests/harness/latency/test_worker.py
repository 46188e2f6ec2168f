"""One measured run: what it times, counts and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from naive_decoder import VOCAB, table, write_decoder
from own_provider import needs_own_provider, write_int8

from edgetie.errors import BundleError, ProviderError
from edgetie.harness.latency.bench import run_worker
from edgetie.harness.latency.worker import Job, measure


@pytest.mark.parametrize("cached", [True, False])
def test_worker_measures_every_token_in_a_fresh_process(tmp_path: Path, cached: bool) -> None:
    path = write_decoder(tmp_path, table(), cached=cached)
    run = run_worker(Job(str(path), "cpu", 1, 5, 4, sample_memory=True))
    assert len(run.step_ms) == 3
    assert min(run.load_seconds, run.first_run_ms, run.prefill_ms, *run.step_ms) > 0
    assert run.threads == 1
    assert set(run.nodes_per_provider) == {"CPUExecutionProvider"}
    assert run.baseline_rss_bytes > 1 << 20
    assert run.peak_rss_bytes >= run.rss_bytes == run.anonymous_bytes + run.file_mapped_bytes
    seconds = [sample[0] for sample in run.timeline]
    assert seconds == sorted(seconds)
    assert seconds[-1] > run.load_seconds


def test_a_run_in_this_process_times_each_token(tmp_path: Path) -> None:
    job = Job(str(write_decoder(tmp_path, table())), "cpu", 1, 5, 4)
    run = measure(job)
    assert run.prompt_tokens == 5
    assert len(run.step_ms) == 3
    assert (run.encode_ms, run.timeline, run.fallback_nodes) == (None, [], {})
    assert run.onnxruntime_version == onnxruntime.__version__
    batch = measure(replace(job, batch=2, new_tokens=2))
    assert (batch.prompt_tokens, len(batch.step_ms)) == (5, 1)


@needs_own_provider
def test_a_session_that_speculates_is_measured_so_too(tmp_path: Path) -> None:
    bundle = write_int8(tmp_path)
    run = measure(Job(str(bundle), "edgetie", 1, 8, 30))
    assert run.speculative_ms is not None
    assert run.speculative_ms > 0
    assert run.accepted_share is None or 0 <= run.accepted_share <= 1
    for other in (Job(str(bundle), "cpu", 1, 8, 4), Job(str(bundle), "edgetie", 1, 8, 4, batch=2)):
        assert measure(other).speculative_ms is None


def test_a_run_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    job = Job(str(write_decoder(tmp_path, table(0, VOCAB))), "cpu", 1, 5, 4)
    with pytest.raises(BundleError, match="no such file"):
        measure(replace(job, path=str(tmp_path / "nothing")))
    with pytest.raises(ProviderError, match="unknown"):
        measure(replace(job, provider="abacus"))


def test_a_worker_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, table())
    with pytest.raises(BundleError, match="measuring process ended with TypeError"):
        run_worker(Job(str(path), "cpu", None, 2, "four"))  # type: ignore[arg-type]
