"""Measures the cost of comparing every evaluation of a layer with the first: steps with and without the comparison.

    python -m lab.studies.evidence_cost --output RESULT.json

The arms run whole forward and backward passes of one network in turns: rebuilding, rebuilding without evidence (which
only this script can do), the library's checkpointing, and transformers' own checkpointing of the ordinary network,
which compares only shapes. Times are ratios to rebuilding without evidence.

A machine's noise may exceed the difference. Therefore the time inside the comparison is measured too, as a share of the
step that contains it.
"""

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import revformers as rf
from lab.bench.arm_names import ORDINARY_CHECKPOINT
from lab.bench.environment import output_file, write_result
from lab.bench.step_time import Quartiles, measure_step_times
from lab.bench.workload import MeasuredWorkload, llama_config
from lab.command import as_command
from revformers.engine import step as step_module
from revformers.engine.proof.evidence import Evidence, LaterEvidence, Leaf
from revformers.engine.proof.situation import Situation
from revformers.engine.proof.statistics import SecondCount
from revformers.engine.proof.verdicts import Verdicts
from revformers.setup import CHECKPOINT
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

REFERENCE = "rebuild without evidence"
ARMS = ("rebuild", REFERENCE, "checkpoint", ORDINARY_CHECKPOINT)
SHAPES = ((192, 24, 128), (384, 4, 512), (576, 4, 512), (768, 4, 512), (1024, 4, 512))
"""Width, sequences and tokens of each shape."""


@contextlib.contextmanager
def without_evidence() -> Iterator[None]:
    """Skip the comparison of evaluations: gradients are then right only if the layers are repeatable."""
    nothing: Callable[..., Any] = lambda *_, **__: None  # noqa: E731
    with (
        mock.patch.object(Evidence, "__init__", nothing),
        mock.patch.object(Evidence, "evaluation", None, create=True),
        mock.patch.object(Evidence, "add", nothing),
        mock.patch.object(Evidence, "finish", nothing),
        mock.patch.object(Evidence, "leaves", return_value=()),
        mock.patch.object(Evidence, "again", lambda _, hidden: LaterEvidence([], None, hidden)),
        mock.patch.object(LaterEvidence, "add", nothing),
        mock.patch.object(Situation, "__init__", nothing),
        mock.patch.object(Situation, "now", lambda situation: situation),
        mock.patch.object(Situation, "written_buffer", nothing),
        mock.patch.object(step_module, "statistics_of", return_value=[]),
        mock.patch.object(Situation, "trains_in_backward", nothing),
        mock.patch.object(step_module, "checksum", nothing),
    ):
        yield


@dataclasses.dataclass
class Inside:
    """Seconds inside the comparison."""

    seconds: float = 0.0
    depth: int = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure inside the block; nested measurements count once."""
        parts: list[tuple[Any, str]] = [
            (Evidence, "__init__"),
            (Evidence, "add"),
            (Evidence, "finish"),
            (LaterEvidence, "__init__"),
            (LaterEvidence, "add"),
            (LaterEvidence, "equal"),
            (LaterEvidence, "finish"),
            (Leaf, "is_unchanged"),
            (Situation, "__init__"),
            (Situation, "now"),
            (Situation, "written_buffer"),
            (step_module, "statistics_of"),
            (SecondCount, "__init__"),
            (SecondCount, "verdicts"),
            (Situation, "trains_in_backward"),
            (Verdicts, "add"),
            (step_module, "checksum"),
        ]
        with contextlib.ExitStack() as stack:
            for owner, name in parts:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))
            yield

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start, self.depth = time.perf_counter(), self.depth + 1
            try:
                return function(*arguments, **keywords)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - start

        return run


def shares_inside(workload: MeasuredWorkload, rounds: int) -> Quartiles:
    """Return the share of a rebuilding step that is spent in the comparison."""
    step, inside, shares = step_of("rebuild", workload), Inside(), []
    step(0)
    with inside.measured():
        for number in range(rounds):
            inside.seconds, start = 0.0, time.perf_counter()
            step(number)
            shares.append(inside.seconds / (time.perf_counter() - start))
    return Quartiles.of(shares)


def step_of(arm: str, workload: MeasuredWorkload) -> Callable[[int], float]:
    """Return a function from the number of a batch to its loss, which runs a forward and backward pass."""
    model: Any = workload.build_model()
    if arm == ORDINARY_CHECKPOINT:
        CHECKPOINT.apply(model)
    else:
        rf.make_reversible(model, rf.Midpoint(), "checkpoint" if arm == "checkpoint" else "rebuild")

    def step(number: int) -> float:
        with without_evidence() if arm == REFERENCE else contextlib.nullcontext():
            loss = workload.forward_backward(model, workload.build_batch(number))
        model.zero_grad()
        return loss

    return step


def main() -> None:
    """Measure all arms in all shapes, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="*", help="of the shapes, those with these widths")
    parser.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of every arm")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    table = TitledTable(
        left=("width",), right=("tokens", "precision", "inside", *(arm for arm in ARMS if arm != REFERENCE))
    )
    rows: list[dict[str, Any]] = []
    for width, batch, tokens in SHAPES:
        if options.widths and width not in options.widths:
            continue
        for precision in options.precisions:
            config = llama_config(options.layers, width, options.vocabulary, tokens)
            workload = MeasuredWorkload(config, batch_size=batch, sequence_length=tokens, precision=precision)
            times = measure_step_times({arm: step_of(arm, workload) for arm in ARMS}, options.rounds)
            share = shares_inside(workload, options.rounds)
            ratios = {arm: times.ratio(arm, REFERENCE) for arm in ARMS if arm != REFERENCE}
            rows.append(
                {
                    "width": width,
                    "batch": batch,
                    "tokens": tokens,
                    "precision": precision,
                    "seconds_without_evidence": dataclasses.asdict(times.summary(REFERENCE)),
                    "share_inside_the_comparison": dataclasses.asdict(share),
                    "over_without_evidence": {arm: dataclasses.asdict(ratio) for arm, ratio in ratios.items()},
                }
            )
            texts = [f"{ratio.median:.3f} ({ratio.lower:.3f} to {ratio.upper:.3f})" for ratio in ratios.values()]
            table.add(str(width), f"{batch} x {tokens}", precision, f"{share.median:.1%}", *texts)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(
        options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.evidence_cost"
    )
    command_console().print(table)


if __name__ == "__main__":
    as_command(main)
