"""Answers about 200 drawn images that a small model was not trained on, in torch and edgetie.

Trains the model on the first call, in about two minutes (`tests/support/image_reader.py`). Needs
transformers: pip install ".[export,images]".
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from session import REPOSITORY, origin, write_table

import edgetie

SUPPORT = REPOSITORY / "tests" / "support"
SCHEMES = ("int8", "int8-dynamic", "int4")
COUNT = 200

Answer = Callable[[Any, str], str]


def measure(name: str, answer: Answer, directory: Path, questions: Any) -> dict[str, Any]:
    """Ask about every image."""
    answers = [answer(image, prompt) for image, prompt in questions]
    size = sum(file.stat().st_size for file in directory.iterdir())
    return {"name": name, "answers": answers, "bytes": size}


def open_torch(reader: Any, checkpoint: Path) -> Answer:
    """Open the model with transformers."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    return lambda image, prompt: reader.ask(model, processor, image, prompt)


def open_bundle(reader: Any, directory: Path) -> Answer:
    """Open a bundle, as `edgetie generate --image` does."""
    session = edgetie.open_session(directory)
    tokenizer = edgetie.Tokenizer.from_bundle(session.bundle)

    def answer(image: Any, prompt: str) -> str:
        chunks = edgetie.answer_about_images(
            session, tokenizer, [image], prompt, max_new_tokens=reader.NEW_TOKENS
        )
        return "".join(chunk.text for chunk in chunks)

    return answer


def to_markdown(rows: list[dict[str, Any]], numbers: list[str], threads: int) -> str:
    """A table of right answers, and of those that torch gives too."""
    lines = [
        "A SmolVLM-shaped model of 0.2 M parameters that reads numbers of two digits in drawn "
        f"images of 64 × 64 pixels. {origin(threads)}.",
        "",
        "| model | files MB | right | as torch |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        right, same = (
            sum(one == other for one, other in zip(row["answers"], others, strict=True))
            for others in (numbers, rows[0]["answers"])
        )
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.2f} | {right} of {COUNT} | {same} of {COUNT} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path))
def main(output: Path | None) -> None:
    """Print the table, or write it between the marks of a page."""
    sys.path.insert(0, str(SUPPORT))
    import image_reader as reader
    import torch

    checkpoint = reader.trained_reader()
    images, numbers = zip(*reader.examples(COUNT), strict=True)
    questions = [
        (image, reader.PROMPTS[index % len(reader.PROMPTS)]) for index, image in enumerate(images)
    ]
    rows = [measure("torch fp32", open_torch(reader, checkpoint), checkpoint, questions)]
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32"
        edgetie.export_model(str(checkpoint), fp32)
        for scheme in SCHEMES:
            edgetie.quantize_model(fp32, Path(folder) / scheme, scheme=scheme)
        for name in ("fp32", *SCHEMES):
            directory = Path(folder) / name
            answer = open_bundle(reader, directory)
            rows.append(measure(f"edgetie {name}", answer, directory, questions))
    markdown = to_markdown(rows, list(numbers), torch.get_num_threads())
    if output is None:
        click.echo(markdown)
    else:
        write_table(output, markdown)


if __name__ == "__main__":
    main()
