"""What quantizing did, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetie.report.tables import plain_console

from .export import ties_table

if TYPE_CHECKING:
    from edgetie.quantize.quantizer import QuantizeReport


def print_quantize(report: QuantizeReport) -> None:
    """Print ties, sizes, block sizes and what stayed in floating point."""
    console = plain_console()
    manifest = report.manifest
    if manifest.ties:
        console.print(ties_table(manifest.ties))
    size = report.bundle.file_bytes
    console.print(
        f"\nfiles        {size / 1e6:,.1f} MB, {size / report.source_bytes:.3f} × the source, "
        f"{size / max(1, manifest.unique_parameters):.3f} bytes a parameter"
    )
    blocks = ", ".join(
        f"{n} by {'rows' if b == 'row' else f'blocks of {b}'}"
        for b, n in manifest.quantization["blocks"].items()
    )
    done = manifest.quantization
    console.print(f"scheme       {done['scheme']}")
    console.print(f"matrices     {blocks or 'none rounded'}")
    console.print(f"calibrated   on {done['calibration']}")
    console.print(f"smoothed     {done['smoothed']} inputs of products, {done['rotated']} rotated")
    if done["massive"]:
        some = ", ".join(done["massive"][:3]) + (", …" if len(done["massive"]) > 3 else "")
        console.print(
            f"massive      activations in front of {len(done['massive'])} products ({some}), "
            "kept precise where the scheme can"
        )
    if done["measured"]:
        found = done["measured"]
        console.print(
            f"measured     KL {found['kl']:.1e}, top-1 {found['top1_agreement']:.2%}, perplexity "
            f"{found['perplexity_increase']:+.2%} on {found['positions']} further tokens"
        )
    for text in report.kept:
        console.print(f"kept fp32    {text}", style="yellow")
    higher_precision = done["finer"]
    if higher_precision:
        some = ", ".join(higher_precision[:3]) + (", …" if len(higher_precision) > 3 else "")
        console.print(f"finer        {len(higher_precision)} products ({some})")
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {sum(report.seconds.values()):.1f} s ({spent})")
    console.print(f"bundle       {report.bundle.directory}")
