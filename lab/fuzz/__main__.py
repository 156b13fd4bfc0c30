"""``python -m lab.fuzz``: run random set-ups and print the ones that fail."""

import collections
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import tyro
from rich.progress import track

from lab.bench.environment import write_result
from lab.bench.workload import check_device
from lab.fuzz.case import Case
from lab.fuzz.run import Outcome, run_seed
from revformers.errors import UserError, counted
from revformers.files import check_place
from revformers.streams import readable_streams
from revformers.training.console import SECONDS_BETWEEN_LINES, command_console, say
from revformers.training.titled_table import TitledTable


@dataclass(frozen=True)
class Arguments:
    """Run random set-ups, in which every policy must give the stored gradient to the bit or raise an error.

    Attributes:
        cases: Number of set-ups; a single one is described with its outcome.
        seed: Seed of the first set-up; the others follow it.
        workers: Number of processes.
        device: Device to run on, such as cuda, whose kernels have to be deterministic: a model that has others is
            impossible there.
        out: File for the counts, in JSON.

    """

    cases: int = 200
    seed: int = 0
    workers: int = 1
    device: str = "cpu"
    out: Path | None = None


def _outcomes(seeds: range, workers: int, device: str) -> Iterator[tuple[Case, Outcome]]:
    run = partial(run_seed, device=device)
    if workers < 2:
        yield from map(run, seeds)
        return
    # Forked processes would inherit the state of PyTorch's threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds, chunksize=10)


MEANINGS = {
    "exact": "every gradient is the stored one to the bit",
    "refused": "something had changed before the backward pass, and an error says so",
    "out of range": "states that fixed point cannot hold, an error with stored activations too",
    "impossible": "no such model, or the ordinary one ends in the same error",
    "FAILED": "another gradient without an error, an error without a cause, or a crash",
}


def main(arguments: Arguments) -> int:
    """Return 1 if a set-up failed, and 0 otherwise."""
    if arguments.cases < 1 or arguments.workers < 1:
        raise SystemExit("There is nothing to run: --cases and --workers must be at least 1.")
    try:
        check_device(arguments.device)
    except ValueError as error:
        raise SystemExit(f"python -m lab.fuzz: {error}") from error
    if arguments.out is not None:
        try:
            check_place(arguments.out)
        except UserError as error:
            raise SystemExit(f"python -m lab.fuzz: {error}") from error
    kinds: collections.Counter[str] = collections.Counter()
    compared, distances, failures, start = 0, [], [], time.monotonic()
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    outcomes = _outcomes(seeds, arguments.workers, arguments.device)
    progress = command_console(stderr=True)
    told = start
    for number, (case, outcome) in enumerate(
        track(outcomes, "set-ups", len(seeds), console=progress, disable=not progress.is_terminal), start=1
    ):
        if not progress.is_terminal and time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            say(progress, f"set-up {number:,} of {arguments.cases:,}")
        kinds[outcome.kind] += 1
        compared += outcome.compared
        distances += [] if outcome.distance is None else [outcome.distance]
        if outcome.kind == "FAILED":
            failures.append({"case": asdict(case), "note": outcome.note})
        if outcome.kind == "FAILED" or arguments.cases == 1:
            print(f"{outcome.kind}: {case}{outcome.note and ': '}{outcome.note}", flush=True)
    if arguments.out is not None:
        result = {"set_ups": dict(kinds), "gradients_compared": compared, "failures": failures}
        far = {"compared_with_the_recurrence": len(distances), "farthest": max(distances, default=None)}
        write_result(arguments.out, result | far, sys.argv[1:], "python -m lab.fuzz")
    table = TitledTable(
        f"{counted(arguments.cases, 'set-up')} from seed {arguments.seed} in {time.monotonic() - start:.0f} s",
        left=("outcome", "set-ups", "what it means"),
        wraps="what it means",
    )
    for kind, meaning in MEANINGS.items():
        table.add(kind, f"{kinds[kind]:,}", meaning)
    console = command_console()
    console.print(table)
    say(console, f"{compared:,} gradients are equal to the bit; {len(distances):,} set-ups agree with the recurrence.")
    return int(bool(failures))


if __name__ == "__main__":
    readable_streams()
    raise SystemExit(main(tyro.cli(Arguments, prog="python -m lab.fuzz")))
