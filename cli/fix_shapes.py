"""``edgetie fix-shapes``: graphs of fixed shapes, for NPUs."""

from __future__ import annotations

from pathlib import Path

import click

from . import common


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="A new bundle."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens of a prompt read at once; 1 reads prompts token by token, with one graph.",
)
@click.option(
    "--context",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Most tokens of prompt and answer together.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common.output_options
def command(
    bundle: Path,
    output: Path,
    prompt_tokens: int,
    context: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Give the graphs of a BUNDLE fixed shapes, which compilers for NPUs need.

    One graph reads prompts, one an answer's tokens; both share one file of weights.

    \b
    edgetie export ./SmolLM2-135M --target mobile-npu --output npu
    edgetie quantize npu --target mobile-npu --output npu8
    edgetie fix-shapes npu8 --output fixed --prompt-tokens 64 --context 512
    edgetie check fixed --reference npu --provider qnn
    """
    from edgetie.npu.fix_shapes import fix_shapes

    made = fix_shapes(bundle, output, prompt_tokens=prompt_tokens, context=context, force=force)
    if as_json:
        files = {path.name: path.stat().st_size for path in made.files}
        ties = [group.to_dict() for group in made.manifest.ties]
        data = {"bundle": str(output), "prompt_tokens": prompt_tokens, "context": context}
        common.print_json({**data, "files": files, "ties": ties})
    elif not quiet:
        names = " and ".join(path.name for path in made.model_paths)
        click.echo(f"{output}: {names} over one file of weights, {made.file_bytes / 1e6:.1f} MB")
