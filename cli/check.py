"""``edgetie check``: accuracy against a reference; the exit code says whether it passed."""

from pathlib import Path

import click

from . import common


@click.command(epilog="Exits 0 if every limit is kept, 1 if one is not, 2 on bad input.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    required=True,
    metavar="REF",
    help="The reference: a torch model (directory, hub id, .gguf, module:function), "
    "another bundle or an .onnx file.",
)
@common.providers_options
@common.threads_option
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text to measure on, from its start [default: a short built-in text].",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Image, or directory of images, for a model that reads some [default: drawn ones].",
)
@click.option(
    "--adapter",
    metavar="NAME[=DIR]",
    help="LoRA adapter to run both with; DIR has it in peft's format, for a reference in torch.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    help="Tokens of the text to use at most.",
)
@click.option(
    "--max-relative-error",
    type=common.Number(min=0),
    help="Limit of the largest logit error over the largest reference logit.",
)
@common.limit_options
@click.option(
    "--trust-remote-code", is_flag=True, help="Let the reference run Python code of its own."
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Let the reference load pickled weights, which can run code when loaded.",
)
@common.output_options
def command(
    bundle: Path,
    reference: str,
    providers: tuple[str, ...],
    strict: bool,
    threads: int | None,
    text: Path | None,
    images: Path | None,
    adapter: str | None,
    max_tokens: int,
    max_relative_error: float | None,
    max_kl: float | None,
    min_top1: float | None,
    max_perplexity_increase: float | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare BUNDLE with a reference model, number by number.

    Both read the same tokens. The report contains the largest and mean logit error, KL divergence,
    top-1 agreement, perplexity, and how far greedy texts agree. Limits depend on the bundle's
    precision. The options below replace single ones.

    \b
    edgetie check fp32 --reference SmolLM2-135M
    edgetie check int8 --reference fp32 --text book.txt --max-tokens 8192
    edgetie check int8 --reference fp32 --provider cpu --provider openvino
    edgetie check smolvlm-int8 --reference smolvlm --images photos/
    edgetie check int8 --reference SmolLM2-135M --adapter pirate=./pirate
    """
    from edgetie.bundle.bundle import open_bundle
    from edgetie.harness.accuracy.check import check_model
    from edgetie.harness.accuracy.references import resolve_reference
    from edgetie.harness.environment import environment_line
    from edgetie.report.tables import accuracy_table, print_tables, ran_by, verdict

    from .printing.progress import live

    opened = open_bundle(bundle)
    name, _, folder = (adapter or "").partition("=")
    with live(quiet) as progress:
        progress.stage("Opening the reference")
        resolved = resolve_reference(
            reference,
            bundle=opened,
            images=images,
            adapter=name or None,
            adapter_source=folder or None,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        reports = [
            check_model(
                opened,
                resolved,
                provider=provider,
                threads=threads,
                strict=strict,
                text=text,
                images=images,
                adapter=name or None,
                max_tokens=max_tokens,
                max_relative_error=max_relative_error,
                max_kl=max_kl,
                min_top1=min_top1,
                max_perplexity_increase=max_perplexity_increase,
                progress=progress,
            )
            for provider in providers
        ]
    report, *others = reports
    if as_json:
        common.print_json(report.to_dict() | {"others": [each.to_dict() for each in others]})
    elif not quiet:
        click.echo(f"{report.bundle} ({report.precision}) against {report.reference}")
        click.echo(f"on {report.data}, run by {ran_by(*reports)}")
        click.echo(environment_line(report.environment))
        print_tables(accuracy_table(*reports))
        click.echo(f"\n{verdict(*reports)}")
    return common.failed(reports)
