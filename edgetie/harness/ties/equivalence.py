"""Compare the outputs of two ONNX files for random input, each run in a separate process."""

import contextlib
import logging
import math
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.errors import BundleError
from edgetie.graph.external_data import external_data_files
from edgetie.providers.json_worker import ask_worker, reply
from edgetie.runtime.memory import release_file_pages
from edgetie.runtime.session import onnxruntime_errors

logger = logging.getLogger(__name__)

_LENGTH = 8  # of every axis that is not fixed, except batch and past
_MAX_ELEMENTS = 1 << 27  # of an input: more than the cache of any decoder with fixed shapes
_SEED = 20240229
_TINY = 1e-12


@dataclass(frozen=True)
class Equivalence:
    """The outputs of two models for the same input.

    Attributes:
        identical: every output equal bit for bit.
        max_abs_error: largest difference of any output.
        relative_error: largest ratio of an output's largest difference to its largest finite
            value in the first model. Integers are equal or infinitely far apart.
        reason: why there is nothing to compare, if so. The errors then mean nothing.
        runs_before: whether the first model runs.
    """

    identical: bool
    max_abs_error: float
    relative_error: float
    reason: str | None = None
    runs_before: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types. NaN and infinity, which JSON lacks, become ``None``."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def choose_length(model: ir.Model, path: Path) -> int:
    """Choose the length of axes that are not fixed: 8, or 1 if an input has very many of them.

    Args:
        model: the model whose inputs are to be made up.
        path: its file, for errors.

    Raises:
        BundleError: naming an input that is too large even so.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    for length in (_LENGTH, 1):
        large = next((v for v in inputs if _count_elements(v, length) > _MAX_ELEMENTS), None)
        if large is None:
            return length
    assert large is not None
    raise BundleError(
        f"{path}: input {large.name} {large.shape} is too large to compare outputs with; "
        "export the model again with a smaller or a dynamic dimension"
    )


def _count_elements(value: ir.Value, length: int) -> int:
    open_size = 0 if _is_past(value) else length
    return math.prod(size if isinstance(size, int) else open_size for size in value.shape or ())


def compare_files(before: Path, after: Path, vocabulary: int, length: int = _LENGTH) -> Equivalence:
    """Run two models with the same inputs and outputs on the CPU, their weights left in the file.

    Args:
        before: the reference.
        after: the model to compare with it.
        vocabulary: integer inputs that are neither mask nor position stay below it.
        length: of every axis that is not fixed, except batch and past; see :func:`choose_length`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        outputs = []
        for index, path in enumerate((before, after)):
            target = Path(scratch) / f"{index}.npz"
            request = {
                "model": str(path), "vocabulary": vocabulary, "length": length,
                "target": str(target),
            }  # fmt: skip
            try:
                ask_worker("cpu", "edgetie.harness.ties.equivalence", request, path.name)
            except BundleError as error:
                if index:
                    return Equivalence(False, math.inf, math.inf, str(error))
                reason = f"the old file does not run: {error}"
                return Equivalence(False, math.nan, math.nan, reason, runs_before=False)
            with np.load(target) as arrays:
                outputs.append([arrays[name] for name in arrays.files])
    return _compare(*outputs)


def _compare(before: list[Any], after: list[Any]) -> Equivalence:
    if len(before) != len(after):  # one of them does not run with the other flag
        return Equivalence(False, math.inf, math.inf, "one of them fails on a flag")
    identical, error, relative = True, 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            return Equivalence(False, math.inf, math.inf)
        is_float = a.dtype.kind == "f"
        if np.array_equal(a, b, equal_nan=is_float):
            continue
        identical, difference, largest = False, math.inf, 1.0
        if is_float:
            x, y = a.astype(np.float64), b.astype(np.float64)
            is_same = (x == y) | (np.isnan(x) & np.isnan(y))
            differences = np.abs(np.subtract(x, y, out=np.zeros_like(x), where=~is_same))
            if np.isfinite(differences).all():
                difference = float(differences.max())
            largest = float(np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max())
        error = max(error, difference)
        relative = max(relative, difference / max(largest, _TINY))
    return Equivalence(identical, error, relative)


def _run(request: dict[str, Any]) -> None:
    import onnxruntime

    path = Path(request["model"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    with onnxruntime_errors(Path(path.name)):
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    random = np.random.default_rng(_SEED)
    inputs = session.get_inputs()
    sizes: dict[Any, int] = {}
    feeds = {
        v.name: _feed(v, random, request["vocabulary"], request["length"], sizes)
        for v in sorted(inputs, key=_is_past)  # other inputs choose the sizes that several share
    }
    flags = [v.name for v in inputs if feeds[v.name].dtype.kind == "b" and feeds[v.name].size == 1]
    with onnxruntime_errors(Path(path.name)), _few_pages(external_data_files(path)):
        results = session.run(None, feeds)
        for name in flags:  # the other branch; not every model takes both values
            try:
                results += session.run(None, feeds | {name: np.asarray(~feeds[name])})
            except Exception:  # pybind11 classes without a common base
                logger.debug("%s: fails if %s is false", path, name, exc_info=True)
    np.savez(request["target"], **{str(i): _plain(result) for i, result in enumerate(results)})


def _plain(result: Any) -> Any:
    """Return an array that is saved without pickle: strings and sequences as text."""
    array = np.asarray(result, dtype=object) if isinstance(result, (list, dict)) else result
    return np.asarray(repr(array)) if array.dtype == object else array


@contextlib.contextmanager
def _few_pages(paths: list[Path]) -> Iterator[None]:
    """Release the files' pages repeatedly. Each weight is read only once."""
    done = threading.Event()

    def release() -> None:
        while not done.wait(0.01):
            release_file_pages(paths)

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_past(value: Any) -> bool:
    """Whether an input is a decoder's cache, which may be empty; an encoder's may not."""
    name = value.name.lower()
    return ("past" in name or "cache" in name) and "encoder" not in name


def _feed(
    value: Any, random: np.random.Generator, vocabulary: int, length: int, sizes: dict[Any, int]
) -> Any:
    """Make up a value for an input of this name and type, with ``sizes`` of named dimensions."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    name = value.name.lower()
    open_sizes = [1] + [0 if _is_past(value) else length] * len(value.shape)
    shape = [
        size if isinstance(size, int) else sizes.setdefault(size or (name, axis), open_sizes[axis])
        for axis, size in enumerate(value.shape)
    ]
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    upper = 1 if "type" in name else max(1, vocabulary)
    return random.integers(0, upper, shape).astype(dtype)


if __name__ == "__main__":
    reply(_run)
