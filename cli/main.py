"""The ``edgetie`` command: its help, its subcommands, and its error messages."""

import contextlib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import click

from edgetie.errors import EdgetieError

from .interrupts import Interrupts, end_interrupted, ignore_interrupts

COMMANDS = {
    "quickstart": "Run every step on a real model.",
    "export": "Export a PyTorch model to an ONNX bundle with tied weights.",
    "tie": "Merge duplicate weights in ONNX files.",
    "prune-vocab": "Drop the tokens that a use never needs, with their rows.",
    "quantize": "Quantize a bundle or .onnx file; tied weights stay tied.",
    "fix-shapes": "Write graphs of fixed shapes for NPUs.",
    "compile": "Compile graphs of fixed shapes for an NPU.",
    "inspect": "Show tied weights, their copies, and sizes.",
    "check": "Compare accuracy with torch or another bundle.",
    "bench": "Measure load time, latency, tokens per second and memory.",
    "providers": "List execution providers and install environments.",
    "generate": "Generate text with a bundle.",
    "deploy": "Write a starter app with model, tokenizer and program.",
}
"""Each command is in the file of its name and is imported when it is called."""

TRACEBACK = "EDGETIE_TRACEBACK"
"""Environment variable: if set, errors are printed with their traceback."""

_READER_LEFT = 128 + 13
"""Exit code that shells use for a program stopped by SIGPIPE."""

HELP = """From a PyTorch language model with tied embeddings to a small, fast ONNX model.

\b
  edgetie quickstart                       all of the following on a real model
  edgetie export MODEL --output fp32       a directory, hub id, .gguf or pkg.module:factory
  edgetie tie IN.onnx --output OUT.onnx    merge weights that are stored twice
  edgetie prune-vocab fp32 --keep-text corpus.txt --output small
  edgetie quantize fp32 --output int8      8 bits per weight, one embedding matrix
  edgetie inspect int8                     count the copies of tied weights
  edgetie check int8 --reference fp32      logits, KL divergence, perplexity
  edgetie bench int8 --against fp32        load, prefill, decode, memory
  edgetie generate int8 --prompt "Hello"   generate text
  edgetie deploy int8 --for c --output app a starter app: python, c, node, web, …
"""


class CommandError(Exception):
    """An error of the library in the words of the command line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LazyGroup(click.Group):
    """A group that imports a command's file only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of the library names the command's options, not parameters."""
        try:
            return super().invoke(ctx)
        except EdgetieError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            spell = partial(as_option, command.params if command is not None else [])
            raise CommandError(error.describe(spell), error.exit_code) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgetie")
def cli() -> None:
    pass


def as_option(params: Sequence[click.Parameter], name: str, value: object = None) -> str:
    """Spell a parameter of the library as an option: ``--force``, ``--cache-bits 8``.

    Args:
        params: the parameters of the command. A positional argument is spelled by its value alone,
            or in capitals if it has none.
        name: the parameter's name in the library.
        value: its value; ``None`` and ``True`` are not spelled.
    """
    param = next((each for each in params if each.name == name), None)
    if isinstance(param, click.Argument):
        return name.upper() if value is None else str(value)
    option = f"--{name.replace('_', '-')}" if param is None else max(param.opts, key=len)
    return option if value is None or value is True else f"{option} {value}"


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    interrupts = Interrupts()
    interrupts.catch()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every code page has all characters
    if sys.stdout is None:
        _fail("stdout is closed, so there is nowhere to write", 2)
    if not sys.warnoptions:  # warnings of libraries are for programmers, edgetie's for users
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("edgetie").addHandler(logging.StreamHandler())
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
        ignore_interrupts()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        end_interrupted(interrupts.last or signal.SIGINT)
    except (BrokenPipeError, SystemExit):  # click turns most of the first into the second
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads the output any more
        sys.exit(_READER_LEFT)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        if interrupts.last is not None and not isinstance(error, CommandError):
            end_interrupted(interrupts.last)  # a library made another error of it
        _fail(*_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, CommandError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path.removeprefix("edgetie").strip()
        where = f"{path}: " if path else ""
        what = error.format_message().rstrip(".")
        return f"{where}{what}; see `{error.ctx.command_path} --help`", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "not enough memory; close other programs or take a smaller model", 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'writing'}: {error.strerror}", 2
    what = " ".join(str(error).split())[:300]
    return f"unexpected {type(error).__name__}: {what}; set {TRACEBACK}=1 to see where", 2


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # if stderr is closed, the exit code remains
        click.echo(f"edgetie: {' '.join(message.split())}", err=True)
    sys.exit(code)
