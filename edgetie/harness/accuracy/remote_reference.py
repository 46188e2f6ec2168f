"""A bundle run by another process, which answers lines of JSON and writes logits to a file."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.bundle import Bundle
from edgetie.errors import BundleError, EdgetieError, error_from_dict
from edgetie.harness.accuracy.references import BundleReference, Floats, Ids
from edgetie.providers.environments import find_environment
from edgetie.providers.json_worker import answer_stream, start_worker
from edgetie.providers.registry import find_provider


class RemoteReference:
    """A bundle in a separate process. Arguments, attributes and errors are those of
    :class:`~edgetie.harness.accuracy.references.BundleReference`.
    """

    media: str
    longest: int | None
    provider: str
    nodes_per_provider: dict[str, int]
    fallback_nodes: dict[str, int]
    onnxruntime_version: str

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str,
        threads: int | None,
        strict: bool = False,
        images: Path | None = None,
        adapter: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.name, self.adapter = str(bundle.path), adapter
        self._folder = tempfile.TemporaryDirectory()
        self._process, name = start_worker(provider, __name__, interactive=True)
        path = str(bundle.path.resolve())
        try:
            source = images and str(images.resolve())
            options = {
                "threads": threads, "strict": strict, "images": source, "adapter": adapter
            }  # fmt: skip
            facts = self._ask(path=path, provider=name, **options)
        except BaseException:
            self.close()
            raise
        vars(self).update(facts | {"provider": find_provider(provider).name})

    def logits(self, ids: Ids) -> Floats:
        file = Path(self._folder.name) / "logits.npy"
        self._ask(logits=ids[0].tolist(), to=str(file))
        logits: Floats = np.load(file)
        return logits

    def encode(self, ids: Ids) -> list[Floats]:
        file = Path(self._folder.name) / "outputs.npz"
        self._ask(encode=ids[0].tolist(), to=str(file))
        with np.load(file) as outputs:
            return [outputs[name] for name in outputs.files]

    def greedy(self, prompt_ids: list[int], n: int) -> list[int]:
        return list(self._ask(greedy=prompt_ids, count=n)["tokens"])

    def _ask(self, **request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            message = f"{self.bundle.model_path}: the process that ran it ended with {how}"
            raise BundleError(message) from None
        if "error" in answer:
            raise error_from_dict(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@contextmanager
def open_reference(
    bundle: Bundle,
    *,
    provider: str,
    threads: int | None,
    strict: bool = False,
    images: Path | None = None,
    adapter: str | None = None,
) -> Iterator[BundleReference | RemoteReference]:
    """Open a bundle on a provider, in another process if this one lacks the provider."""
    if find_environment(find_provider(provider)) is None:
        yield BundleReference(
            bundle,
            provider=provider,
            threads=threads,
            strict=strict,
            images=images,
            adapter=adapter,
        )
        return
    remote = RemoteReference(
        bundle, provider=provider, threads=threads, strict=strict, images=images, adapter=adapter
    )
    with closing(remote):
        yield remote


def _main() -> None:
    answers = answer_stream()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "path" in request:
                images = request.pop("images")
                model = BundleReference(
                    request.pop("path"), images=Path(images) if images else None, **request
                )
                answer = {name: getattr(model, name) for name in RemoteReference.__annotations__}
            elif "logits" in request:
                np.save(request["to"], model.logits(np.array([request["logits"]], np.int64)))
            elif "encode" in request:
                np.savez(request["to"], *model.encode(np.array([request["encode"]], np.int64)))
            else:
                answer = {"tokens": model.greedy(request["greedy"], request["count"])}
        except EdgetieError as error:
            answer = {"error": error.to_dict()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
