"""The peaks of a study: each is measured once and kept in its file."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lab.bench.arm_names import budget_of, smallest_budget_of
from lab.bench.memory import PeakMemory
from lab.bench.process import MeasuringProcess
from lab.bench.study_file import StudyFile
from lab.bench.study_point import shape
from lab.bench.workload import MeasuredWorkload
from revformers.byte_size import size_in_words
from revformers.setup import Setup

BUDGET_TRIALS = 8
"""Most budgets to try until the measured peak is the requested one."""


class StudyPeaks:
    """Measures the peaks that the file does not hold yet.

    Args:
        file: where the peaks are kept.
        tolerance: the share of a peak by which a budget arm may stay below the requested peak.
        progress: called with one line after each measurement.

    """

    def __init__(self, file: StudyFile, tolerance: float, progress: Callable[[str], object]) -> None:
        self._file = file
        self._tolerance = tolerance
        self._progress = progress

    def measure(
        self,
        process: MeasuringProcess,
        name: str,
        arm: Setup,
        workload: MeasuredWorkload,
        *,
        limit: int | None = None,
        resident: bool = False,
    ) -> PeakMemory | None:
        """Return the memory of one step, or None if it does not fit; see `Measurer.peak`."""
        size = budget_of(arm)
        if size is not None and size < smallest_budget_of(arm, workload):
            return None
        key = {"arm": name, "budget": size, **shape(workload), "limit": limit}
        row = self._file.find("peaks", **key)
        if row is None:
            try:
                measured = process.peak(workload, arm, memory=limit, resident=resident)
                row, found = {**key, **dataclasses.asdict(measured)}, f"peak {size_in_words(measured.peak)}"
            except MemoryError as error:
                row, found = {**key, "out_of_memory": str(error)}, "out of memory"
            self._file.add("peaks", row)
            budget = f" of {size_in_words(size)}" if size else ""
            self._progress(
                f"{name}{budget}, {workload.layers} layers, {workload.batch_size} x {workload.sequence_length} tokens: "
                f"{found}"
            )
        return _peak_memory(row)

    def of_sizes(self, name: str, workload: MeasuredWorkload, grows: str) -> dict[int, int]:
        """Return the total bytes of a step, by the measured values of the size that grows."""
        fixed = {key: size for key, size in shape(workload).items() if key != grows}
        rows = [row for row in self._file.result["peaks"] if row["arm"] == name]
        measured = {row[grows]: _peak_memory(row) for row in rows if fixed.items() <= row.items()}
        return {size: peak.total for size, peak in measured.items() if peak is not None}

    def equal_budget(
        self,
        process: MeasuringProcess,
        name: str,
        arm_of: Callable[[int], Setup],
        workload: MeasuredWorkload,
        room: int,
        limit: int | None = None,
    ) -> int | None:
        """Return the largest budget whose measured peak is within `room` bytes, or None if the smallest does not fit.

        A budget does not cover the memory of a single layer and the head, so the measured peak exceeds it by that much.
        Each trial adds the memory that the last one left free, until a budget is too large.
        """
        key = {"arm": name, **shape(workload), "room": room, "limit": limit}
        row = self._file.find("budgets", **key)
        if row is None:
            smallest = smallest_budget_of(arm_of(1), workload)
            best, fails, trial = None, None, smallest
            for _ in range(BUDGET_TRIALS):
                measured = self.measure(process, name, arm_of(trial), workload, limit=limit)
                if measured is not None and measured.peak <= room:
                    best, left = trial, room - measured.peak
                    if left <= self._tolerance * room:
                        break
                else:
                    fails, left = trial, 0
                if best is None or (fails is not None and fails - best <= self._tolerance * room):
                    break
                # Layers are stored whole, so a little more may be one layer too many: from there on, bisect.
                trial = best + left if fails is None else (best + fails) // 2
            row = {**key, "budget": best}
            self._file.add("budgets", row)
        return row["budget"]


def _peak_memory(row: dict[str, Any]) -> PeakMemory | None:
    """Return the measurement in a row, or None if the row says that memory ran out."""
    if "out_of_memory" in row:
        return None
    return PeakMemory(**{field.name: row[field.name] for field in dataclasses.fields(PeakMemory)})
