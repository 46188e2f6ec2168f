"""Tokens per second with and without proposed tokens, on texts that copy their prompt or do not.

    python benchmarks/speculation.py BUNDLE [--new-tokens 128] [--temperature 0]

Both sessions run each prompt in turn. The texts must be the same.
"""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from edgetie import Sampling, Session, Tokenizer, generate, open_session
from edgetie.downloads import demo_text

PROMPTS = 32
COPYING = (
    "Repeat this text word for word:\n\n{}",
    "Copy the following paragraph exactly, without changes:\n\n{}",
    "Correct the spelling of this text and write it out again:\n\n{}",
    'Write this text again with every "I" in it kept:\n\n{}',
)
FREE = (
    "Write a short story about {}.", "Explain {} to a child.", "What do people say about {}?",
    "Give me advice about {}.",
)  # fmt: skip
SUBJECTS = (
    "a fox and a river", "rain in a city", "learning the guitar", "the sea", "friendship",
    "black holes", "cooking rice", "a job interview",
)  # fmt: skip


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--threads", type=int)
@click.option("--provider", default="auto", show_default=True)
def main(
    bundle: Path, new_tokens: int, temperature: float, threads: int | None, provider: str
) -> None:
    sessions = [
        open_session(bundle, threads=threads, provider=provider, speculate=each)
        for each in (False, True)
    ]
    tokenizer = Tokenizer.from_bundle(sessions[0].bundle)
    print("| text | same tokens | speed-up, median | of all | accepted |")
    print("| --- | --- | --- | --- | --- |")
    free = [form.format(subject) for form in FREE for subject in SUBJECTS]
    for name, texts in (("copies its prompt", _copying()), ("does not", free)):
        same, ratios, totals = 0, [], np.zeros(4)
        for seed, text in enumerate(texts):
            chat = tokenizer.chat_prompt([{"role": "user", "content": text}])
            ids = tokenizer.encode(chat, add_special_tokens=False)
            plain, other = (
                _run(session, ids, new_tokens, Sampling(temperature), seed) for session in sessions
            )
            same += plain.tokens == other.tokens
            ratios.append(plain.seconds / other.seconds)
            totals += plain.seconds, other.seconds, other.proposed, other.accepted
        before, after, proposed, accepted = totals
        print(
            f"| {name} | {same} of {len(texts)} | {statistics.median(ratios):.2f} | "
            f"{before / after:.2f} | {accepted / max(proposed, 1):.0%} |"
        )


@dataclass(frozen=True)
class _Run:
    """One text; its seconds from the first token on."""

    tokens: list[int]
    seconds: float
    proposed: int
    accepted: int


def _run(session: Session, ids: list[int], count: int, sampling: Sampling, seed: int) -> _Run:
    steps, start = [], 0.0
    for step in generate(session, [ids], max_new_tokens=count, sampling=sampling, seed=seed):
        start = start or time.perf_counter()
        steps.append(step)
    seconds = time.perf_counter() - start
    tokens = [int(step.tokens[0]) for step in steps]
    return _Run(tokens, seconds, steps[-1].proposed, steps[-1].accepted)


def _copying() -> list[str]:
    """Three sentences each of the demonstration's novel, with a request to write them again."""
    text = re.sub(r"\s+", " ", demo_text())
    sentences = [each for each in re.split(r"(?<=[.!?]) ", text) if 40 < len(each) < 200]
    passages = [" ".join(sentences[at : at + 3]) for at in range(60, 60 + 3 * PROMPTS, 3)]
    return [COPYING[i % len(COPYING)].format(each) for i, each in enumerate(passages)]


main()
