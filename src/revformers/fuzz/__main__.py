"""``python -m revformers.fuzz``: run random set-ups and print the ones that fail."""

import collections
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from revformers.benchmark.environment import write_result
from revformers.fuzz.case import Case
from revformers.fuzz.run import Outcome, run_seed


@dataclass(frozen=True)
class Arguments:
    """Run random set-ups, in which every policy must give the stored gradient to the bit or raise an error."""

    cases: int = 200
    """How many set-ups."""
    seed: int = 0
    """The first one; the others follow it."""
    workers: int = 1
    """How many processes run them."""
    out: Path | None = None
    """A file for the counts, in JSON."""


def _outcomes(seeds: range, workers: int) -> Iterator[tuple[Case, Outcome]]:
    if workers < 2:
        yield from map(run_seed, seeds)
        return
    # Forked processes would inherit the state of PyTorch's threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run_seed, seeds, chunksize=10)


def main(arguments: Arguments) -> int:
    """Return 1 where a set-up failed, and 0 otherwise."""
    kinds: collections.Counter[str] = collections.Counter()
    compared, distances, failures, start = 0, [], [], time.monotonic()
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    for case, outcome in _outcomes(seeds, arguments.workers):
        kinds[outcome.kind] += 1
        compared += outcome.compared
        distances += [] if outcome.distance is None else [outcome.distance]
        if outcome.kind == "FAILED":
            failures.append({"case": asdict(case), "note": outcome.note})
            print(f"FAILED {outcome.note}: {case}", flush=True)
        elif arguments.cases == 1:
            print(f"{outcome.kind} {outcome.note}: {case}")
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    print(
        f"{arguments.cases} set-ups from seed {arguments.seed}: {counts}; {compared} gradients equal to the bit, "
        f"{len(distances)} set-ups compared with the recurrence, in {time.monotonic() - start:.0f} s"
    )
    if arguments.out is not None:
        result = {"set_ups": dict(kinds), "gradients_compared": compared, "failures": failures}
        far = {"compared_with_the_recurrence": len(distances), "farthest": max(distances, default=None)}
        write_result(arguments.out, result | far, sys.argv[1:], "python -m revformers.fuzz")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Arguments)))
