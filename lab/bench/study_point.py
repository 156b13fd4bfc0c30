"""One figure of a study: an arm at one value, or at the largest batch or sequence that fits."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.bench.arm_names import ORDINARY_ARMS, ORDINARY_EVERY, ArmName, budget_of
from lab.bench.memory import PeakMemory, TurnTimes
from lab.bench.step_time import Quartiles, StepTimes
from lab.bench.study_axis import Value
from lab.bench.workload import MeasuredWorkload
from revformers.setup import Setup

REFERENCES = (*ORDINARY_ARMS, ORDINARY_EVERY, "store", "checkpoint")
"""The arms to which the times of other arms are compared."""


@dataclass(frozen=True)
class Point:
    """One arm at one value, or at its largest size.

    Attributes:
        value: value of the axis; None if a search does not depend on it.
        memory: for a search, the memory as the recipe names it.
        name: name of the arm.
        workload: the workload at the value, or the largest one.
        arm: None if the arm to match does not fit, or if no budget has the same peak.
        peak: None if the step does not fit.

    """

    value: Value
    memory: str | None
    name: str
    workload: MeasuredWorkload
    arm: Setup | None
    peak: PeakMemory | None

    def row(self, points: "Sequence[Point]", times: TurnTimes) -> dict[str, Any]:
        """Return the row for the file; ratios are formed within a round, and only between equal batches."""
        row: dict[str, Any] = {"value": self.value, "memory": self.memory, "arm": self.name}
        if self.peak is None:
            return {**row, "fits": None if self.arm is None else False}
        assert self.arm is not None
        row |= {"fits": True, **shape(self.workload), "budget": budget_of(self.arm), **dataclasses.asdict(self.peak)}
        if self.name not in times.seconds:
            return row
        seconds, all_times = Quartiles.of(times.seconds[self.name]), StepTimes(times.seconds)
        references = [
            other.name
            for other in points
            if ArmName.parse(other.name).name in REFERENCES
            and other.name in times.seconds
            and other.workload == self.workload
        ]
        return {
            **row,
            "seconds": dataclasses.asdict(seconds),
            "samples_per_second": self.workload.batch_size / seconds.median,
            "ratios": {other: dataclasses.asdict(all_times.ratio(self.name, other)) for other in references},
            "seconds_by_round": times.seconds[self.name],
            "losses": times.losses[self.name],
        }


def shape(workload: MeasuredWorkload) -> dict[str, int]:
    """Return the sizes of a workload that a study varies."""
    return {name: getattr(workload, name) for name in ("layers", "batch_size", "sequence_length")}
