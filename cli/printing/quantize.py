"""Print the report of ``edgetie quantize`` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetie.progress import format_duration
from edgetie.report.tables import plain_console, print_drawn

from .export import ties_table
from .repair import print_near

if TYPE_CHECKING:
    from edgetie.quantize.mixed_precision.search import SearchSummary
    from edgetie.quantize.quantizer import QuantizeReport


def print_quantize(report: QuantizeReport) -> None:
    """Print what stayed in floating point, ties, sizes and block sizes."""
    console = plain_console()
    console.print(
        f"quantized    all but {report.float_share:.1%} of the weights' bytes; "
        f"{report.float_bytes / 1e6:,.1f} MB stayed in floating point"
    )
    manifest = report.manifest
    entries = manifest.quantization
    if manifest.ties:
        print_drawn(console, ties_table(manifest.ties))
    size = report.bundle.file_bytes
    console.print(
        f"\nfiles        {size / 1e6:,.1f} MB, {size / report.source_bytes:.3f} × the source, "
        f"{size / max(1, manifest.unique_parameters):.3f} bytes a parameter"
    )
    blocks = ", ".join(
        f"{n} by {'output channels' if b == 'row' else f'blocks of {b}'}"
        for b, n in entries["blocks"].items()
    )
    console.print(f"scheme       {entries['scheme']}")
    console.print(f"weights      {blocks or 'none quantized'}")
    console.print(f"calibrated   on {entries['calibration']}")
    console.print(
        f"smoothed     {entries['smoothed']} inputs of linear layers, {entries['rotated']} rotated"
    )
    if entries["massive"]:
        names = _first_names(entries["massive"])
        console.print(
            f"massive      activations before {len(entries['massive'])} linear layers ({names}), "
            "more precise if the scheme can"
        )
    if entries["measured"]:
        metrics = entries["measured"]
        console.print(
            f"measured     KL {metrics['kl']:.1e}, top-1 {metrics['top1_agreement']:.2%}, "
            f"perplexity {metrics['perplexity_increase']:+.2%} on {metrics['positions']} further "
            "tokens"
        )
    if report.search is not None:
        console.print(f"searched     {_describe_search(report.search)}")
    if report.smaller_scheme is not None:
        name, other = report.smaller_scheme.name, report.smaller_scheme.file_bytes
        console.print(
            f"advice       --scheme {name} keeps the limits in {other / 1e6:,.1f} MB",
            style="yellow",
        )
    for text in report.float_weights:
        console.print(f"kept fp32    {text}", style="yellow")
    for copy in report.near:
        print_near(console, copy, merged=copy.name in report.merged_near)
    for name, users in report.dequantized.items():
        console.print(f"dequantized  {name}: as a whole in each run, for {users}", style="yellow")
    if entries["finer"]:
        weights = _first_names(entries["finer"])
        console.print(f"finer        {len(entries['finer'])} weights ({weights})")
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    console.print(f"time         {sum(report.seconds.values()):.1f} s ({spent})")
    console.print(f"bundle       {report.bundle.directory}")


def _describe_search(search: SearchSummary) -> str:
    text = f"{search.tried} forms in {format_duration(search.seconds)}"
    if not search.stopped:
        return text
    return f"{text}; stopped by {search.stopped}: this is the smallest so far within the limits"


def _first_names(names: Sequence[str]) -> str:
    """List the first three names."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
