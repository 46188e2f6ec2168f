"""``edgetie prune-vocab``."""

from dataclasses import asdict
from pathlib import Path

import click

from .common import output_options, print_json


@click.command(
    epilog="""\b
Examples:
  edgetie prune-vocab fp32 --keep-text corpus.txt --output small
  edgetie prune-vocab fp32 --keep-text en.txt --keep-text de.txt --output small
  edgetie prune-vocab fp32 --keep-languages ja,en --output small
  edgetie prune-vocab fp32 --keep-tokens ids.txt --output small"""
)
@click.argument("bundle", type=click.Path())
@click.option("--output", "-o", required=True, type=click.Path(), help="Directory to write.")
@click.option(
    "--keep-text", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A text in UTF-8 whose tokens are kept. May be repeated.",
)  # fmt: skip
@click.option(
    "--keep-tokens", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A file of token numbers, separated by white space. May be repeated.",
)  # fmt: skip
@click.option(
    "--keep-languages", default="", metavar="CODES",
    help="Languages such as ja,en (ISO 639): all tokens of the characters they are written in, "
    "digits, punctuation and symbols are kept. Needs Babel.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@output_options
def command(
    bundle: str, output: str, keep_text: tuple[Path, ...], keep_tokens: tuple[Path, ...],
    keep_languages: str, force: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Drop the tokens of an fp32 BUNDLE that a use never needs.

    Their rows of the embedding table, the head and its bias go, and their entries of the tokenizer.
    Tokens of the kept texts and languages stay, special tokens, and those of the chat template and
    of bytes. The tokens of the texts and the logits are compared with those of BUNDLE before
    anything is written. Quantize the result afterwards.
    """
    from edgetie.prune.pruner import prune_vocabulary

    from .printing.progress import live

    with live(quiet) as progress:
        report = prune_vocabulary(
            bundle, output, keep_text=keep_text, keep_tokens=keep_tokens,
            keep_languages=keep_languages.split(",") if keep_languages else (), force=force,
            progress=progress,
        )  # fmt: skip
    if as_json:
        fields = {name: value for name, value in vars(report).items() if name != "bundle"}
        costs = {
            name: None if (cost := fields[name]) is None else asdict(cost) | {
                "tokens_per_word_before": cost.tokens_per_word_before,
                "tokens_per_word_after": cost.tokens_per_word_after,
            }
            for name in ("text", "unseen")
        }  # fmt: skip
        print_json({"bundle": str(report.bundle.directory)} | fields | costs)
    elif not quiet:
        from .printing.prune_vocab import print_prune

        print_prune(report)
