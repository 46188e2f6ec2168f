"""A bundle that another process runs, where its provider can be had, asked as if it were here.

``python -m edgetie.harness.accuracy.remote_reference`` opens the bundle it is told and
answers questions, a line of JSON each; logits, which are large, go through a file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, EdgetieError
from edgetie.harness.accuracy.references import BundleReference, Floats, Ids
from edgetie.providers.environments import environment_of, raise_error, start
from edgetie.providers.json_worker import answer_stream
from edgetie.providers.registry import find


class RemoteReference:
    """A bundle in a process of its own.

    Args:
        bundle: it.
        provider: where it runs.
        threads: intra-op threads; ``None`` takes ONNX Runtime's default.
        strict: take no provider that leaves nodes to another one.

    Attributes:
        nodes_per_provider: nodes of the optimized graph, by ONNX Runtime's provider name.
        elsewhere: by operator, those that run elsewhere than asked.

    Raises:
        BundleError: if the bundle cannot be read.
        ProviderError: if the provider is absent or does not take the model.
    """

    def __init__(
        self, bundle: Bundle, *, provider: str, threads: int | None, strict: bool = False
    ) -> None:
        self.bundle = bundle
        self._folder = tempfile.TemporaryDirectory()
        self._process, name = start(provider, __name__, interactive=True)
        path = bundle.path
        try:
            told = self._ask(
                path=str(path.resolve()), provider=name, threads=threads, strict=strict
            )
        except BaseException:
            self.close()
            raise
        self.name: str = str(path)
        self.is_audio_model: bool = told["hears"]
        self.longest: int | None = told["longest"]
        self.nodes_per_provider: dict[str, int] = told["nodes_per_provider"]
        self.fallback_nodes: dict[str, int] = told["elsewhere"]

    def logits(self, ids: Ids) -> Floats:
        """Logits at every position: ``(1, S)`` to ``(S, vocabulary)``."""
        file = Path(self._folder.name) / "logits.npy"
        self._ask(logits=ids[0].tolist(), to=str(file))
        found: Floats = np.load(file)
        return found

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        """The ``n`` likeliest tokens after the prompt."""
        return list(self._ask(greedy=prompt_ids, count=n)["tokens"])

    def _ask(self, **question: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            path = self.bundle.model_path
            raise BundleError(f"{path}: the process that ran it ended with {how}") from None
        if "error" in answer:
            raise_error(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@contextmanager
def open_reference(
    bundle: Bundle, *, provider: str, threads: int | None, strict: bool = False
) -> Iterator[BundleReference | RemoteReference]:
    """A bundle on a provider: in this process, or in another where it can be had.

    Raises:
        BundleError: if the bundle cannot be read.
        ProviderError: if the provider is absent or does not take the model.
    """
    if environment_of(find(provider)) is None:
        yield BundleReference(bundle, provider=provider, threads=threads, strict=strict)
        return
    there = RemoteReference(bundle, provider=provider, threads=threads, strict=strict)
    try:
        yield there
    finally:
        there.close()


def _answer(model: BundleReference | None, question: dict[str, Any]) -> dict[str, Any]:
    if model is None:
        raise EdgetieError("no bundle was opened")
    if "logits" in question:
        np.save(question["to"], model.logits(np.array([question["logits"]], np.int64)))
        return {}
    return {"tokens": model.greedy(question["greedy"], question["count"])}


def _main() -> None:
    answers = answer_stream()
    model: BundleReference | None = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any]
        try:
            if "path" in question:
                model = BundleReference(question.pop("path"), **question)
                answer = {
                    "hears": model.is_audio_model,
                    "longest": model.longest,
                    "nodes_per_provider": model.session.nodes_per_provider,
                    "elsewhere": model.session.fallback_nodes,
                }
            else:
                answer = _answer(model, question)
        except EdgetieError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
