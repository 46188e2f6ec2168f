"""Run random nodes on edgetie's provider and print how far they are off, as one line of JSON.

``python kernel_fuzz.py SEED RUNS``; the instruction set is that of EDGETIE_INSTRUCTION_SET.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from kernel_cases import Case, excess, random_cases
from kernel_models import nodes_taken, open_session

from edgetie.kernels import instruction_set


def run_case(case: Case, threads: int) -> tuple[float, list[str]]:
    """Return the largest error as a multiple of its bound, and what is wrong."""
    session = open_session(case.model, threads)
    wrong = [] if nodes_taken(session) == case.nodes else [f"{case.description}: not taken"]
    largest = 0.0
    for number, run in enumerate(case.runs):
        try:
            outputs = session.run(None, run.feeds)
        except Exception as error:
            if run.results is not None or "is outside of" not in str(error):
                wrong.append(f"{case.description}: run {number}: {error}")
            continue
        if run.results is None:
            wrong.append(f"{case.description}: run {number} must fail")
            continue
        most = max(map(excess, run.results, outputs))
        if most > 1:
            wrong.append(f"{case.description}: run {number}: {most:.3g} times the bound")
        largest = max(largest, most)
    return largest, wrong


def main() -> None:
    seed, runs = map(int, sys.argv[1:])
    counts: Counter[str] = Counter()
    largest: dict[str, float] = {}
    wrong: list[str] = []
    for number, (kind, case) in enumerate(random_cases(seed, runs)):
        error, problems = run_case(case, threads=1 + number % 3)
        counts[kind] += len(case.runs)
        largest[kind] = max(largest.get(kind, 0.0), error)
        wrong += problems
    report = {"set": instruction_set(), "runs": counts, "largest": largest, "wrong": wrong}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
