"""The ``edgetie`` command: its help, its list of commands, and how errors leave it."""

from __future__ import annotations

import importlib
import sys

import click

from edgetie.errors import EdgetieError

COMMANDS = {
    "quickstart": "The whole journey on a real model, in one command.",
    "export": "PyTorch to an ONNX bundle, tied weights kept as one.",
    "quantize": "A bundle or .onnx file to int8, ties kept.",
    "inspect": "Tie groups, copies of shared weights, sizes.",
    "check": "Accuracy against torch or another bundle.",
    "bench": "Load time, latency, tokens per second, memory.",
    "generate": "Stream text from a bundle.",
}
"""Each command lives in the file of its name; it is imported when it is called."""

HELP = """From a PyTorch language model with tied embeddings to a small, fast ONNX model.

\b
  edgetie quickstart                       everything below, on a real model
  edgetie export MODEL --output fp32       a directory, hub id, .gguf or pkg.module:factory
  edgetie quantize fp32 --output int8      8 bits a weight, one embedding matrix
  edgetie inspect int8                     proof that one matrix is still one
  edgetie check int8 --reference fp32      logits, KL divergence, perplexity
  edgetie bench int8 --against fp32        load, prefill, decode, memory
  edgetie generate int8 --prompt "Hello"   stream text
"""


class LazyGroup(click.Group):
    """A group that imports a command's file only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f".{cmd_name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgetie")
def cli() -> None:
    pass


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgetie: interrupted; nothing was half-written", err=True)
        sys.exit(130)
    except EdgetieError as error:
        click.echo(f"edgetie: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
