"""What the scripts share: their options, the measuring of rows, and giving out the report."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import catalogue
import click
from rich.console import Console
from rich.markdown import Markdown
from rich.status import Status
from rows import ROWS
from workshop import HERE, REPOSITORY, UnavailableError, Workshop

VERSIONS = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def default_work() -> Path:
    """A folder of ours in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "edgetie" / "benchmarks"


def origin(threads: int) -> str:
    """Describe in one line where, when and with which commit the numbers were measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    cpu = names[0] if names else platform.machine()
    return (
        f"{cpu} ({_instruction_sets(cpuinfo)}), {os.cpu_count()} CPUs ({threads} threads used),"
        f" {platform.system()}, Python {platform.python_version()}; commit {_commit()},"
        f" {datetime.now(UTC).date()}"
    )


def _instruction_sets(cpuinfo: str) -> str:
    """Name the processor's instruction sets that kernels choose by."""
    flags = set(cpuinfo.split())
    sets = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "amx_int8": "AMX",
            "asimddp": "dot product", "i8mm": "i8mm"}  # fmt: skip
    return ", ".join(name for flag, name in sets.items() if flag in flags) or "baseline"


def _commit() -> str:
    """The checkout's commit, with a plus sign if the library differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(REPOSITORY), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    changed = git("diff", "--quiet", "HEAD", "--", "edgetie", "pyproject.toml").returncode
    return (git("log", "-1", "--format=%h").stdout.strip() or "unknown") + "+" * bool(changed)


def write_table(file: Path, markdown: str) -> None:
    """Write a table into a Markdown file.

    If the file has the marks ``<!-- NAME -->`` and ``<!-- /NAME -->``, NAME being the running
    script's, only what stands between them is replaced.
    """
    name = Path(sys.argv[0]).stem
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    page = file.read_text(encoding="utf-8") if file.is_file() else ""
    if begin in page and end in page:
        before, after = page[: page.index(begin) + len(begin)], page[page.index(end) :]
        markdown = f"{before}\n{markdown}\n{after}"
    file.write_text(markdown, encoding="utf-8")


def command_options(names: Iterable[str], gigabytes: int) -> Callable[[Any], Any]:
    """The options of every script whose rows have these names."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = [
        click.option(
            "--work",
            type=click.Path(file_okay=False, path_type=Path),
            default=default_work,
            show_default="a folder in the user's cache directory",
            help=f"Where environments and models are made and kept (about {gigabytes} GB).",
        ),
        click.option("--rounds", type=click.IntRange(1), default=5, show_default=True),
        click.option("--threads", type=click.IntRange(1), default=2, show_default=True),
        click.option(
            "--only",
            multiple=True,
            type=click.Choice(list(names)),
            help="Measure this row; repeat for more. Default: all of them.",
        ),
        click.option("--json", "json_file", type=file, help="Write every single run to this file."),
        click.option(
            "--output",
            type=file,
            help="Write the table to this Markdown file as well, between the script's marks if it "
            "has them, as docs/benchmarks.md does.",
        ),
    ]

    return lambda command: _decorated(command, options)


def prompt_options(command: Any) -> Any:
    """The options of a script that measures how a prompt is continued."""
    options = [
        click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True),
        click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True),
    ]
    return _decorated(command, options)


def _decorated(command: Any, options: Sequence[Callable[[Any], Any]]) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Settings:
    """The values of those options."""

    work: Path
    rounds: int
    threads: int
    only: tuple[str, ...]
    json_file: Path | None
    output: Path | None


class Session:
    """One call of a script: what it measures with, and what came out so far."""

    def __init__(
        self, settings: Settings, names: Iterable[str], console: Console, status: Status
    ) -> None:
        self.settings = settings
        self.workshop = Workshop(settings.work.resolve(), self.announce)
        self.console = console
        self.status = status
        self.runs: dict[str, list[dict[str, Any]]] = {
            name: [] for name in names if not settings.only or name in settings.only
        }
        self.versions: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.options = ["--threads", str(settings.threads)]

    def announce(self, what: str) -> None:
        """Show what is being made, and leave a line of it."""
        self.status.update(what)
        self.console.print(f"making {what}", style="dim", markup=False)

    def sound_rows(self) -> list[str]:
        """The rows with which nothing went wrong yet."""
        return [name for name in self.runs if name not in self.failures]

    @contextmanager
    def noting(self, name: str, doing: str) -> Iterator[None]:
        """Show what is being done for a row, and note why where it cannot be done."""
        self.status.update(f"{doing}: {name}")
        try:
            yield
        except UnavailableError as error:
            self.failures[name] = f"{doing}: {error}"
            self.console.print(f"{name}: {self.failures[name]}", style="red", markup=False)

    def prepare(self) -> None:
        """Make all that the rows need, and note the versions that will be measured."""
        for name in self.sound_rows():
            row = ROWS[name]
            distributions = catalogue.ENVIRONMENTS[row.environment].distributions
            with self.noting(name, "preparation"):
                self.workshop.environment(row.environment)
                self.workshop.model(row.model)
                command = ["python", "-c", VERSIONS, *distributions]
                found = self.workshop.run(row.environment, command, f"versions-{name}").split()
                pairs = zip(distributions, found, strict=True)
                self.versions[name] = ", ".join(f"{what} {version}" for what, version in pairs)

    def measure(self) -> None:
        """Run every row once, then every row again."""
        rounds = self.settings.rounds
        for number in range(1, rounds + 1):
            for name in self.sound_rows():
                with self.noting(name, f"round {number} of {rounds}"):
                    run = self.work_once(name, "run")
                    self.runs[name].append(run)
                    seconds = f"loaded in {run['load_seconds']:.2f} s"
                    self.console.print(f"round {number}: {name}: {seconds}", style="dim")

    def work_once(self, name: str, log: str, *options: str) -> dict[str, Any]:
        """One run of a row's worker, in a process of its own."""
        row = ROWS[name]
        worker, model = HERE / "workers" / row.worker, self.workshop.model(row.model)
        output = self.workshop.run(
            row.environment,
            ["python", str(worker), "--model", str(model), *self.options, *options],
            f"{log}-{name}",
            {"HF_HUB_OFFLINE": "1"},
        )
        try:
            result: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError):
            raise UnavailableError("the worker printed no line of JSON") from None
        return result

    def report(self) -> dict[str, Any]:
        """What every table is made of."""
        settings = self.settings
        return {
            "origin": origin(settings.threads),
            "rounds": settings.rounds,
            "versions": self.versions,
            "failures": self.failures,
            "runs": self.runs,
        }

    def publish(self, markdown: str, report: dict[str, Any]) -> None:
        """Print the table, and write the files that were asked for."""
        if sys.stdout.isatty():
            Console().print(Markdown(markdown))
        else:
            click.echo(markdown, nl=False)
        if self.settings.output:
            write_table(self.settings.output, markdown)
        if self.settings.json_file:
            self.settings.json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")

    def needed(self, model: str) -> Path:
        """The directory of a model without which nothing can be measured."""
        try:
            return self.workshop.model(model)
        except UnavailableError as error:
            raise click.ClickException(f"nothing to measure with: {error}") from None

    def ask(self, prompt_tokens: int, new_tokens: int) -> None:
        """Cut the prompt out of the long text, or repeat the text until it is long enough."""
        ids = json.loads((self.needed(catalogue.WEIGHTS) / "prompt_ids.json").read_text("utf-8"))
        prompt = list(itertools.islice(itertools.cycle(ids), prompt_tokens))
        file = self.workshop.directory / "prompt.json"
        file.write_text(json.dumps(prompt), encoding="utf-8")
        self.options += ["--prompt", str(file), "--new-tokens", str(new_tokens)]


@contextmanager
def open_session(settings: Settings, names: Iterable[str]) -> Iterator[Session]:
    """A session of the rows asked for, whose progress is shown on the terminal."""
    console = Console(stderr=True)
    with console.status("") as status:
        yield Session(settings, names, console, status)
