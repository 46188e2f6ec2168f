"""``edgetie inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import output_options, print_json, provider_option

if TYPE_CHECKING:
    from edgetie.harness.ties.inspect import Inspection


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
    from edgetie.harness.ties.inspect import inspect_model

    from .printing.progress import live

    with live(quiet) as progress:
        inspection = inspect_model(path, provider=provider, progress=progress)
    if as_json:
        print_json(
            {
                "path": str(inspection.bundle.model_path),
                "tie_groups": [tie.to_dict() for tie in inspection.ties],
                "copies": inspection.copies,
                "operators": inspection.operators,
                "largest_tensors": [
                    {"name": n, "dtype": d, "shape": s, "bytes": b}
                    for n, d, s, b in inspection.tensors
                ],
                "weight_bytes": inspection.weight_bytes,
                "file_bytes": inspection.bundle.file_bytes,
                "adapters": inspection.bundle.manifest.adapters,
                "provider": inspection.provider,
                "nodes_per_provider": inspection.nodes_per_provider,
            }
        )
    elif not quiet:
        from .printing.inspect import print_inspection

        print_inspection(inspection)
    problems = _problems(inspection) if require_tied else []
    for text in problems:
        click.echo(f"edgetie: {text}", err=True)
    return 1 if problems else 0


def _problems(inspection: Inspection) -> list[str]:
    """List what shows that a weight is not stored once, or cannot be shown to be."""
    from edgetie.harness.ties.tie_memory import MIN_BYTES

    if not inspection.ties and not inspection.copies:
        return [f"{inspection.bundle.model_path}: no tied weights"]
    problems = [
        f"{' = '.join(names)}: stored {len(names)} times; edgetie tie makes them one"
        for names in inspection.copies
    ]
    for tie in inspection.ties:
        name = tie.group.name
        if max(tie.file, tie.optimized, tie.memory or 1) > 1:
            memory = "not measured" if tie.memory is None else tie.memory
            problems.append(
                f"{name}: copies in the file {tie.file}, optimized {tie.optimized}, in memory "
                f"{memory}"
            )
        elif tie.memory is None and tie.group.bytes >= MIN_BYTES:
            problems.append(f"{name}: its copies in memory cannot be counted here")
    return problems
