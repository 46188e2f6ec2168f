"""Time to the first token of a prompt whose beginning is in a prompt cache, and without the cache.

    python benchmarks/prompt_cache.py BUNDLE [--beginning 1024] [--question 16]

Every run has a decoder that has read nothing, and tokens by chance. The session is open.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from session import origin, write_table

import edgetie

PROVIDERS = ("edgetie", "cpu")


def time_first_token(
    session: edgetie.Session, prompt: list[int], cache: edgetie.PromptCache | None
) -> tuple[float, int]:
    """Time the first token in seconds; returns it too."""
    start = time.perf_counter()
    first = next(edgetie.generate(session, [prompt], max_new_tokens=8, prompt_cache=cache))
    return time.perf_counter() - start, int(first.tokens[0])


def measure(bundle: Path, provider: str, beginning: int, question: int, rounds: int) -> str:
    """Measure with and without the cache in turn; returns a row of the table."""
    session = edgetie.open_session(bundle, provider=provider)
    vocabulary = session.bundle.manifest.signature.vocab_size
    prompt = np.random.default_rng(0).integers(vocabulary, size=beginning + question).tolist()
    with tempfile.TemporaryDirectory() as folder:
        cache = edgetie.PromptCache(Path(folder) / "prompt.cache")
        time_first_token(session, prompt[: beginning + 1], cache)
        runs = [
            (time_first_token(session, prompt, None), time_first_token(session, prompt, cache))
            for _ in range(rounds)
        ]
        if cache.cached_tokens != beginning or any(one[1] != other[1] for one, other in runs):
            raise click.ClickException(f"{provider}: the cache was not used, or changed the token")
        size = cache.path.stat().st_size
    whole, cached = ([1000 * seconds for seconds, _ in each] for each in zip(*runs, strict=True))
    ratio = statistics.median(one / other for one, other in zip(cached, whole, strict=True))
    return (
        f"| {provider} | {statistics.median(whole):.0f} ({min(whole):.0f}) "
        f"| {statistics.median(cached):.0f} ({min(cached):.0f}) | {ratio:.3f} | {size / 1e6:.1f} |"
    )


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--beginning", default=1024, show_default=True, help="Tokens in the cache.")
@click.option("--question", default=16, show_default=True, help="Tokens after them.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path))
def main(bundle: Path, beginning: int, question: int, rounds: int, output: Path | None) -> None:
    """Print the table, or write it between the marks of a page."""
    opened = edgetie.open_bundle(bundle)
    threads = edgetie.open_session(opened).threads
    name = f"{opened.manifest.source.get('name')} in {opened.manifest.precision}"
    lines = [
        f"{name}: {beginning:,} tokens that the cache has, and {question} more; "
        f"{rounds} interleaved rounds, median (best). "
        f"{origin(threads)}.",
        "",
        "| provider | whole prompt ms | with the cache ms | ratio | file MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [measure(bundle, each, beginning, question, rounds) for each in PROVIDERS]
    markdown = "\n".join(lines) + "\n"
    if output is None:
        click.echo(markdown)
    else:
        write_table(output, markdown)


if __name__ == "__main__":
    main()
