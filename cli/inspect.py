"""``edgetie inspect``."""

from __future__ import annotations

import click

from .common import output_options, print_json, provider_option


@click.command(
    epilog="""\b
Examples:
  edgetie inspect smol-int8
  edgetie inspect model.onnx --json
  edgetie inspect smol --require-tied && echo one matrix"""
)
@click.argument("path", type=click.Path())
@click.option(
    "--require-tied",
    is_flag=True,
    help="Exit 1 unless every tied weight is one in file, optimized graph and, from 8 MB on, "
    "memory.",
)
@provider_option
@output_options
def command(path: str, require_tied: bool, provider: str, as_json: bool, quiet: bool) -> int:
    """Show the tied weights of PATH and every copy of them: in the file, after ONNX Runtime's
    optimizations, and in the memory of a loaded session.
    """
    from edgetie.harness.inspection import inspect
    from edgetie.harness.tie_memory import MIN_BYTES
    from edgetie.report.progress import live

    with live(quiet) as progress:
        found = inspect(path, provider=provider, progress=progress)
    if as_json:
        print_json(
            {
                "path": str(found.bundle.model_path),
                "tie_groups": [proof.to_dict() for proof in found.ties],
                "operators": found.operators,
                "largest_tensors": [
                    {"name": n, "dtype": d, "shape": s, "bytes": b} for n, d, s, b in found.tensors
                ],
                "weight_bytes": found.weight_bytes,
                "file_bytes": found.bundle.file_bytes,
                "nodes_per_provider": found.nodes_per_provider,
            }
        )
    elif not quiet:
        from edgetie.report.inspect_table import print_inspection

        print_inspection(found)
    if not require_tied:
        return 0
    for proof in found.ties:
        if proof.memory is None and proof.group.bytes >= MIN_BYTES:
            click.echo(
                f"edgetie: {proof.group.name}: its copies in memory cannot be counted here",
                err=True,
            )
            return 1
    single = all(max(each.file, each.optimized, each.memory or 1) == 1 for each in found.ties)
    return 0 if found.ties and single else 1
