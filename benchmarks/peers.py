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


def prepare(workshop: Workshop, name: str) -> str:
    """Make all that a peer needs; the answer names the versions that will be measured."""
    peer = catalogue.PEERS[name]
    workshop.environment(peer.environment)
    workshop.model(peer.model)
    command = ["python", "-c", VERSIONS, *peer.distributions]
    versions = workshop.run(peer.environment, command, f"versions-{name}").split()
    return ", ".join(
        f"{distribution} {version}"
        for distribution, version in zip(peer.distributions, versions, strict=True)
    )


def work_once(workshop: Workshop, name: str, log: str, options: list[str]) -> dict[str, Any]:
    """One run of a peer's worker, in a process of its own."""
    peer = catalogue.PEERS[name]
    worker = str(HERE / "workers" / peer.worker)
    command = ["python", worker, "--model", str(workshop.model(peer.model)), *options]
    output = workshop.run(peer.environment, command, f"{log}-{name}", {"HF_HUB_OFFLINE": "1"})
    try:
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise UnavailableError("the worker printed no line of JSON") from None
    return result


def announce(console: Console, status: Status, what: str) -> None:
    """Show what is being made, and leave a line of it."""
    status.update(what)
    console.print(f"making {what}", style="dim", markup=False)


@click.command(help=__doc__)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_work,
    show_default="a folder in the user's cache directory",
    help="Where environments and models are made and kept (about 12 GB).",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
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
    console = Console(stderr=True)
    work = work.resolve()
    prompt, reference = work / "prompt.json", work / "reference.json"
    options = ["--prompt", str(prompt), "--new-tokens", str(new_tokens), "--threads", str(threads)]

    names = [name for name in catalogue.PEERS if not only or name in only]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    versions: dict[str, str] = {}
    same_tokens: dict[str, int] = {}
    failures: dict[str, str] = {}

    @contextmanager
    def noting(name: str, doing: str) -> Iterator[None]:
        """Show what is being done for a peer, and note why where it cannot be done."""
        status.update(f"{doing}: {name}")
        try:
            yield
        except UnavailableError as error:
            failures[name] = f"{doing}: {error}"
            console.print(f"{name}: {failures[name]}", style="red", markup=False)

    with console.status("") as status:
        workshop = Workshop(work, lambda what: announce(console, status, what))
        try:
            write_prompt(workshop.model(catalogue.WEIGHTS), prompt_tokens, prompt)
        except UnavailableError as error:
            raise click.ClickException(f"no weights to start from: {error}") from None
        for name in names:
            with noting(name, "preparation"):
                versions[name] = prepare(workshop, name)
        for number in range(1, rounds + 1):
            for name in names:
                if name in failures:
                    continue
                with noting(name, f"round {number} of {rounds}"):
                    run = work_once(workshop, name, "run", options)
                    runs[name].append(run)
                    speed = run["decode_tokens_per_second"]
                    console.print(f"round {number}: {name}: {speed:.1f} tokens/s", style="dim")
        if runs.get(catalogue.REFERENCE_PEER):
            reference.write_text(json.dumps(runs[catalogue.REFERENCE_PEER][0]["token_ids"]))
            for name in names:
                if name in failures:
                    continue
                with noting(name, "comparison with the reference"):
                    result = work_once(
                        workshop, name, "compare", [*options, "--reference", str(reference)]
                    )
                    same_tokens[name] = result["same_tokens"]

    report = {
        "model": catalogue.SOURCE_TITLE,
        "machine": machine(threads),
        "rounds": rounds,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "versions": versions,
        "failures": failures,
        "same_tokens": same_tokens,
        "runs": runs,
    }
    if json_file:
        json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    markdown = table.render(report)
    if output:
        output.write_text(markdown, encoding="utf-8")
    if sys.stdout.isatty():
        Console().print(Markdown(markdown))
    else:
        click.echo(markdown, nl=False)


if __name__ == "__main__":
    main()
