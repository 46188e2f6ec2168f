"""Measure edgetie against its peers on the same weights, interleaved, and print the table."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import catalogue
import click
import table
from rich.console import Console
from rich.markdown import Markdown
from rich.status import Status
from workshop import HERE, UnavailableError, Workshop

VERSIONS = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def default_work() -> Path:
    """A folder of ours in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "edgetie" / "benchmarks"


def machine(threads: int) -> str:
    """One line on where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    cpu = names[0] if names else platform.machine()
    return (
        f"{cpu}, {os.cpu_count()} CPUs ({threads} threads used), {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}"
    )


def write_prompt(weights: Path, length: int, file: Path) -> None:
    """Cut the prompt out of the long text, or repeat the text until it is long enough."""
    ids = json.loads((weights / "prompt_ids.json").read_text("utf-8"))
    file.write_text(json.dumps(list(itertools.islice(itertools.cycle(ids), length))), "utf-8")


class Session:
    """One call of this program: what it measures with, and what came out so far."""

    def __init__(self, work: Path, names: list[str], console: Console, status: Status) -> None:
        self.workshop = Workshop(work, self.announce)
        self.console = console
        self.status = status
        self.runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.versions: dict[str, str] = {}
        self.same_tokens: dict[str, int] = {}
        self.failures: dict[str, str] = {}

    def announce(self, what: str) -> None:
        """Show what is being made, and leave a line of it."""
        self.status.update(what)
        self.console.print(f"making {what}", style="dim", markup=False)

    def sound_peers(self) -> list[str]:
        """The peers with which nothing went wrong yet."""
        return [name for name in self.runs if name not in self.failures]

    @contextmanager
    def noting(self, name: str, doing: str) -> Iterator[None]:
        """Show what is being done for a peer, and note why where it cannot be done."""
        self.status.update(f"{doing}: {name}")
        try:
            yield
        except UnavailableError as error:
            self.failures[name] = f"{doing}: {error}"
            self.console.print(f"{name}: {self.failures[name]}", style="red", markup=False)

    def prepare(self) -> None:
        """Make all that the peers need, and note the versions that will be measured."""
        for name in self.sound_peers():
            peer = catalogue.PEERS[name]
            with self.noting(name, "preparation"):
                self.workshop.environment(peer.environment)
                self.workshop.model(peer.model)
                command = ["python", "-c", VERSIONS, *peer.distributions]
                found = self.workshop.run(peer.environment, command, f"versions-{name}").split()
                pairs = zip(peer.distributions, found, strict=True)
                self.versions[name] = ", ".join(f"{what} {version}" for what, version in pairs)

    def measure(self, rounds: int, options: list[str]) -> None:
        """Run every peer once, then every peer again."""
        for number in range(1, rounds + 1):
            for name in self.sound_peers():
                with self.noting(name, f"round {number} of {rounds}"):
                    run = self.work_once(name, "run", options)
                    self.runs[name].append(run)
                    speed = f"{run['decode_tokens_per_second']:.1f} tokens/s"
                    self.console.print(f"round {number}: {name}: {speed}", style="dim")

    def compare(self, reference: Path, options: list[str]) -> None:
        """Count each peer's agreement with the tokens of the reference, if that was measured."""
        reference_runs = self.runs.get(catalogue.REFERENCE_PEER)
        if not reference_runs:
            return
        reference.write_text(json.dumps(reference_runs[0]["token_ids"]), encoding="utf-8")
        for name in self.sound_peers():
            with self.noting(name, "comparison with the reference"):
                result = self.work_once(name, "compare", [*options, "--reference", str(reference)])
                self.same_tokens[name] = result["same_tokens"]

    def work_once(self, name: str, log: str, options: list[str]) -> dict[str, Any]:
        """One run of a peer's worker, in a process of its own."""
        peer = catalogue.PEERS[name]
        worker, model = HERE / "workers" / peer.worker, self.workshop.model(peer.model)
        output = self.workshop.run(
            peer.environment,
            ["python", str(worker), "--model", str(model), *options],
            f"{log}-{name}",
            {"HF_HUB_OFFLINE": "1"},
        )
        try:
            result: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError):
            raise UnavailableError("the worker printed no line of JSON") from None
        return result


@click.command(help=__doc__)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_work,
    show_default="a folder in the user's cache directory",
    help="Where environments and models are made and kept (about 11 GB).",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(catalogue.PEERS)),
    help="Measure this peer; repeat for more. Default: all of them.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every single run to this file.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this Markdown file as well.",
)
def main(
    work: Path,
    rounds: int,
    threads: int,
    prompt_tokens: int,
    new_tokens: int,
    only: tuple[str, ...],
    json_file: Path | None,
    output: Path | None,
) -> None:
    work = work.resolve()
    names = [name for name in catalogue.PEERS if not only or name in only]
    prompt = work / "prompt.json"
    options = ["--prompt", str(prompt), "--new-tokens", str(new_tokens), "--threads", str(threads)]

    console = Console(stderr=True)
    with console.status("") as status:
        session = Session(work, names, console, status)
        try:
            write_prompt(session.workshop.model(catalogue.WEIGHTS), prompt_tokens, prompt)
        except UnavailableError as error:
            raise click.ClickException(f"no weights to start from: {error}") from None
        session.prepare()
        session.measure(rounds, options)
        session.compare(work / "reference.json", options)

    report = {
        "model": catalogue.SOURCE_TITLE,
        "machine": machine(threads),
        "rounds": rounds,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "versions": session.versions,
        "failures": session.failures,
        "same_tokens": session.same_tokens,
        "runs": session.runs,
    }
    markdown = table.render(report)
    if sys.stdout.isatty():
        Console().print(Markdown(markdown))
    else:
        click.echo(markdown, nl=False)
    if output:
        output.write_text(markdown, encoding="utf-8")
    if json_file:
        json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
