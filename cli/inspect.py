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
    from edgetie.progress import live

    with live(quiet) as progress:
        found = inspect_model(path, provider=provider, progress=progress)
    if as_json:
        print_json(
            {
                "path": str(found.bundle.model_path),
                "tie_groups": [proof.to_dict() for proof in found.ties],
                "copies": found.copies,
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
        from .printing.inspect import print_inspection

        print_inspection(found)
    problems = _problems(found) if require_tied else []
    for text in problems:
        click.echo(f"edgetie: {text}", err=True)
    return 1 if problems else 0


def _problems(found: Inspection) -> list[str]:
    """What keeps the weights from being proven one each."""
    from edgetie.harness.ties.tie_memory import MIN_BYTES

    if not found.ties and not found.copies:
        return [f"{found.bundle.model_path}: no tied weights"]
    problems = [
        f"{' = '.join(names)}: stored {len(names)} times; edgetie tie makes them one"
        for names in found.copies
    ]
    for proof in found.ties:
        name = proof.group.name
        if max(proof.file, proof.optimized, proof.memory or 1) > 1:
            memory = "not measured" if proof.memory is None else proof.memory
            problems.append(
                f"{name}: copies in the file {proof.file}, optimized {proof.optimized}, in memory "
                f"{memory}"
            )
        elif proof.memory is None and proof.group.bytes >= MIN_BYTES:
            problems.append(f"{name}: its copies in memory cannot be counted here")
    return problems
