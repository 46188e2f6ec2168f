"""Export a small random model of every architecture with tied embeddings, and write the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import small_models
from session import origin, write_table

PARITY = 1e-4
"""Largest error of a logit, relative to the largest logit."""

_TOP1 = 0.95
_SEED, _WINDOWS, _WINDOW = 7, 5, 128
_AHEAD = {
    "speech-seq2seq": (),
    "seq2seq-lm": ("speech-seq2seq",),
    "causal-lm": ("speech-seq2seq", "seq2seq-lm", "image-text-to-text"),
    "masked-lm": ("speech-seq2seq", "seq2seq-lm"),
    "image-text-to-text": ("seq2seq-lm",),
    "image-to-text": ("seq2seq-lm",),
}
"""Families in which a class counts rather than in this one."""
_UNTIED = "its module ties nothing"


@dataclass
class Row:
    """What became of one architecture.

    Attributes:
        family, model_type, architecture: which.
        tied: whether its torch module has tied weights at all; if not, it does not count.
        groups: tied weights of the torch module.
        copies: how often the written file stores each of them.
        parity: relative logit error against torch: prompt, cached steps, left-padded batch.
        top1: share of random positions at which int8 and fp32 find the same token likeliest.
        top1_unread: the same, the token just read left out: tied random weights like it best.
        int8_tied: whether int8 keeps each tied weight once.
        operators: fused operators and how many.
        unfused: what was not fused, and why.
        causes: why it failed, by stage, a line each.
        origins: where the failures were raised, by stage.
        seconds: of the whole.
    """

    family: str
    model_type: str
    architecture: str
    tied: bool = True
    exported: bool = False
    groups: list[list[str]] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    parity: float | None = None
    top1: float | None = None
    top1_unread: float | None = None
    int8_tied: bool | None = None
    operators: dict[str, int] = field(default_factory=dict)
    unfused: list[str] = field(default_factory=list)
    causes: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Every tied weight is stored once."""
        counted = len(self.copies) == len(self.groups)
        return self.exported and counted and all(count == 1 for count in self.copies)

    @property
    def matches(self) -> bool:
        return self.parity is not None and self.parity <= PARITY

    @contextmanager
    def noting(self, stage: str) -> Iterator[None]:
        """Note what goes wrong in a stage, and stop there."""
        try:
            yield
        except Exception as error:
            self.causes.setdefault(stage, _one_line(error))
            self.origins.setdefault(stage, _origin(error))


def measure(row: Row, directory: Path) -> None:
    """Export, compare, quantize, compare."""
    import torch

    from edgetie.export.exporter import export_model
    from edgetie.quantize.quantizer import quantize_model
    from edgetie.sources.source import Source
    from edgetie.ties.torch_parameters import tied_parameters

    torch.set_num_threads(1)
    with row.noting("build"):
        module = small_models.build(row.family, row.model_type)
        row.groups = [list(names) for names in tied_parameters(module)]
        row.tied = bool(row.groups)
    if row.causes or not row.tied:
        return
    config: Any = module.config
    starts = [getattr(config, f"{name}_token_id", None) for name in ("decoder_start", "bos")]
    if config.is_encoder_decoder and not any(isinstance(start, int) for start in starts):
        config.decoder_start_token_id = 0
    source = Source(
        "transformers", row.model_type, module, config, config.save_pretrained, task=row.family
    )
    fp32, int8 = directory / "fp32", directory / "int8"
    with row.noting("export"):
        report = export_model(source, fp32)
        row.exported, row.parity = True, report.agreement.relative
        fusion = report.manifest.fusion
        row.operators, row.unfused = dict(fusion["operators"]), list(fusion["unfused"])
    if not row.exported:
        return
    with row.noting("ties"):
        row.copies = [copies(fp32, names) for names in row.groups]
        if not row.kept:
            stored = ", ".join(f"{n[0]}: {c}" for n, c in zip(row.groups, row.copies, strict=True))
            row.causes["ties"] = f"copies in the file: {stored}"
    if not row.matches:
        row.causes["parity"] = f"logits differ by {row.parity:.1e} of the largest"
    with row.noting("int8"):
        quantize_model(fp32, int8)
        row.int8_tied = row.kept and _int8_tied(fp32, int8)
        row.top1, row.top1_unread = top1(fp32, int8)


def copies(directory: Path, names: list[str]) -> int:
    """How often the ONNX files of a bundle store the weight with these names in torch.

    Entries over the same bytes of a file count once; 0 means that it is not there.
    """
    import onnx_ir as ir

    from edgetie.bundle.bundle import open_bundle
    from edgetie.ties.equal_weights import equal_groups
    from edgetie.ties.groups import is_named

    manifest = open_bundle(directory).manifest
    ties = {tie.name for tie in manifest.ties if set(tie.parameters) & set(names)}
    models = [ir.load(path) for path in sorted(directory.glob("*.onnx"))]
    values = [value for model in models for value in model.graph.initializers.values()]
    found = [v for v in values if v.name in ties or is_named(str(v.name), tuple(names))]
    for group in equal_groups(values):
        if any(twin.value in found for twin in group):
            return len(group)
    return min(len(found), 1)


def _int8_tied(fp32: Path, int8: Path) -> bool:
    from edgetie.bundle.bundle import open_bundle
    from edgetie.harness.ties.inspect import tie_status

    before, after = (open_bundle(directory).manifest for directory in (fp32, int8))
    assert before is not None
    assert after is not None
    lost = {tie.name for tie in before.ties} - {tie.name for tie in after.ties}
    return not lost and tie_status(open_bundle(int8)).intact is not False


def top1(fp32: Path, int8: Path) -> tuple[float, float]:
    """Agreement of the likeliest tokens on random ones, behind noise where a model hears.

    Returns:
        That of all tokens, and that of all but the one just read.
    """
    import numpy as np

    from edgetie.bundle.bundle import open_bundle
    from edgetie.harness.accuracy.references import BundleReference

    manifest = open_bundle(fp32).manifest
    signature = manifest.signature
    models = [BundleReference(directory, threads=1) for directory in (fp32, int8)]
    window = min(_WINDOW, models[0].longest or _WINDOW)
    start = signature.start_token_ids[-1:] if models[0].session.cross else []
    tokens = np.random.default_rng(_SEED).integers(0, signature.vocab_size, (_WINDOWS, 1, window))
    equal, equal_unread = [], []
    for ids in tokens:
        first, second = (model.logits(ids) for model in models)
        equal.append(first.argmax(-1) == second.argmax(-1))
        read = np.array([*start, *ids[0]])[:window, None]
        for logits in (first, second):
            np.put_along_axis(logits, read, -np.inf, axis=1)
        equal_unread.append(first.argmax(-1) == second.argmax(-1))
    return float(np.mean(equal)), float(np.mean(equal_unread))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _origin(error: BaseException) -> str:
    """The innermost exception and where it was raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {_one_line(error)} ({place})"


def run_one(family: str, model_type: str, limit: float) -> Row:
    """Measure one architecture in a process of its own."""
    row = Row(family, model_type, small_models.model_types(family)[model_type])
    command = [sys.executable, __file__, "--one", family, model_type]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        row = Row(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        row.causes["time"] = f"not done after {limit:.0f} s"
    except (IndexError, ValueError, TypeError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        row.causes["process"] = f"ended with {done.returncode}: {said[-1][:200] if said else ''}"
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def candidates(family: str) -> list[str]:
    """Model types whose configuration ties embeddings by default, or cannot tell.

    A class that transformers lists in several families counts in one.
    """
    found = []
    ahead = [small_models.model_types(name) for name in _AHEAD[family]]
    for model_type, name in small_models.model_types(family).items():
        if any(table.get(model_type) == name for table in ahead):
            continue
        try:
            tied = small_models.ties_by_default(small_models.default_config(model_type))
        except small_models.NotBuilt:
            tied = True
        if tied:
            found.append(model_type)
    return found


def render(rows: list[Row]) -> str:
    """The table in Markdown, with counts above it."""
    from importlib.metadata import version

    lines = [
        f"{origin(1)}.",
        "",
        f"Every architecture of transformers {version('transformers')} whose configuration ties "
        "embeddings by default and whose module really does, as a small random model (2 layers, or "
        "4 where they differ; widths of 64): exported, compared with torch, quantized.",
        "",
        "| family | architectures | exported | tied weights once "
        f"| logits within {PARITY:.0e} | int8, tied "
        f"| top-1 {_TOP1:.0%} | (unread) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    counted = [row for row in rows if row.tied]
    for family in small_models.FAMILIES:
        of = [row for row in counted if row.family == family]
        if of:
            sums = [
                len(of),
                sum(row.exported for row in of),
                sum(row.kept for row in of),
                sum(row.kept and row.matches for row in of),
                sum(bool(row.int8_tied) for row in of),
                sum((row.top1 or 0) >= _TOP1 for row in of),
                sum((row.top1_unread or 0) >= _TOP1 for row in of),
            ]
            lines.append(f"| {family} | {' | '.join(map(str, sums))} |")
    lines += [
        "",
        "*Logits*: largest error over the largest logit, of a prompt, of cached steps and of a "
        "left-padded batch. *int8*: share of 640 random positions at which int8 and fp32 find the "
        "same token likeliest; in brackets that just read left out, which tied random weights like "
        "best. Random weights leave little between the next two. Models of speech and images read "
        "noise, the same for both. BigBird has full attention (`attention_type: original_full`): "
        "with its sparse one, which short texts switch off, exporting is refused.",
        "",
        "| family | class | model type | exported | copies | logits | int8 top-1 "
        "| operators | s | why not |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    lines += [_line(row) for row in counted]
    untied = [f"{row.model_type} ({row.family})" for row in rows if not row.tied]
    if untied:
        lines += ["", f"Not counted, as {_UNTIED}: {', '.join(untied)}."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    names = [name for name in row.operators if name != "nodes" and row.operators[name]]
    why = [f"{stage}: {cause}" for stage, cause in row.causes.items()]
    cells = [
        row.family,
        row.architecture,
        row.model_type,
        "yes" if row.exported else "no",
        ", ".join(map(str, row.copies)),
        f"{row.parity:.1e}" if row.parity is not None else "",
        f"{row.top1:.1%} ({row.top1_unread:.1%})" if row.top1 is not None else "",
        ", ".join(f"{row.operators[name]} {name}" for name in names),
        f"{row.seconds:.0f}",
        "; ".join(why).replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.option("--family", multiple=True, type=click.Choice(list(small_models.FAMILIES)))
@click.option("--only", multiple=True, metavar="MODEL_TYPE", help="Repeat for more.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--limit", type=float, default=180, show_default=True, help="Seconds for each.")
@click.option("--one", type=(str, str), help="FAMILY MODEL_TYPE: this one, here, as JSON.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every row to this file.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this Markdown file as well.",
)
def main(
    family: tuple[str, ...],
    only: tuple[str, ...],
    jobs: int,
    limit: float,
    one: tuple[str, str] | None,
    json_file: Path | None,
    output: Path | None,
) -> None:
    if one:
        row = Row(*one, small_models.model_types(one[0])[one[1]])
        with tempfile.TemporaryDirectory() as directory:
            measure(row, Path(directory))
        click.echo(json.dumps(asdict(row)))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = [
        (name, model_type)
        for name in family or tuple(small_models.FAMILIES)
        for model_type in candidates(name)
        if not only or model_type in only
    ]
    rows: list[Row] = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda pair: run_one(pair[0], pair[1], limit), wanted):
            rows.append(row)
            said = "; ".join(f"{stage}: {cause}" for stage, cause in row.causes.items())
            click.echo(f"{row.family} {row.model_type}: {said or row.parity}", err=True)
            if json_file:
                json_file.write_text(json.dumps([asdict(r) for r in rows], indent=1), "utf-8")
    markdown = render(rows)
    click.echo(markdown, nl=False)
    if output:
        write_table(output, markdown)


if __name__ == "__main__":
    main()
