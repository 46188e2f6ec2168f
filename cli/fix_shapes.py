"""``edgetie fix-shapes``: write graphs of fixed shapes for NPUs."""

from pathlib import Path

import click

from . import common


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="A new bundle."
)
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), default=64, show_default=True,
    help="Tokens of a prompt that are read at once. With 1 there is only one graph.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(min=2), default=512, show_default=True,
    help="Largest number of tokens of prompt and answer together.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@common.output_options
def command(
    bundle: Path, output: Path, prompt_tokens: int, context: int, force: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Give the graphs of a BUNDLE fixed shapes, which compilers for NPUs need.

    One graph reads prompts, the other reads single tokens. Both share one file of weights.

    \b
    edgetie export ./SmolLM2-135M --target mobile-npu --output npu
    edgetie quantize npu --target mobile-npu --output npu8
    edgetie fix-shapes npu8 --output fixed --prompt-tokens 64 --context 512
    edgetie check fixed --reference npu --provider qnn
    """
    from edgetie.npu.fix_shapes import fix_shapes

    fixed = fix_shapes(bundle, output, prompt_tokens=prompt_tokens, context=context, force=force)
    if as_json:
        files = {path.name: path.stat().st_size for path in fixed.files}
        ties = [group.to_dict() for group in fixed.manifest.ties]
        data = {"bundle": str(output), "prompt_tokens": prompt_tokens, "context": context}
        common.print_json({**data, "files": files, "ties": ties})
    elif not quiet:
        names = " and ".join(path.name for path in fixed.model_paths)
        click.echo(f"{output}: {names} over one file of weights, {fixed.file_bytes / 1e6:.1f} MB")
