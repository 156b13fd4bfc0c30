"""Studies over depth, batch size, sequence length or budget: peak memory, step times, and the largest that fits."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from revformers.benchmark.arm_names import ArmName
from revformers.benchmark.memory import PeakMemory, TurnTimes
from revformers.benchmark.process import MeasuringProcess
from revformers.benchmark.recipe import CHECKPOINT, FREE, BenchRecipe
from revformers.benchmark.search import find_largest
from revformers.benchmark.study_axis import Axis, Value
from revformers.benchmark.study_file import StudyFile
from revformers.benchmark.study_point import Point, shape
from revformers.benchmark.workload import PLAIN_CHECKPOINT, Arm, Workload
from revformers.byte_size import parse_size, size_in_words
from revformers.training.errors import RecipeError

Row = dict[str, Any]
Found = tuple[int, int | None, PeakMemory | None]

BUDGET_TRIALS = 8
"""Budgets that are tried at most until the measured peak is the one asked for."""


class Study:
    """One study of one recipe.

    Its file holds, in the order of their measurement:

    * ``peaks``: the memory of one step of one arm, or that it ran out of it; the trials of searches among them;
    * ``budgets``: the budget with which a budget arm peaks at what it is compared with;
    * ``largest``: the largest batch or longest sequence of an arm within a memory;
    * ``points``: the result, one row an arm at every value, and at its largest within every memory: its peak and, where
      it fits, its step times, taken in turns with the other arms.

    Args:
        axis: what is varied.
        recipe: what is measured.
        file: where rows are kept, and found by a study that goes on.
        progress: called with one line after each measurement.

    Raises:
        RecipeError: where the recipe has nothing to vary, or its network cannot be trained as an arm says.
        NotReversibleError: for a network that cannot have the dynamics.

    """

    def __init__(
        self, axis: Axis, recipe: BenchRecipe, file: StudyFile, progress: Callable[[str], object] = lambda line: None
    ) -> None:
        self._axis = axis
        self._recipe = recipe
        self._file = file
        self._progress = progress
        self._values: tuple[Value, ...] = getattr(recipe, axis.field)
        self._names = recipe.arm_names()
        self._dynamics = recipe.recurrence()
        self._workload = recipe.workload()
        self._limits_allocator = torch.device(recipe.device).type == "cuda"
        self._memory: dict[str, int] = {}
        self._check()

    def run(self) -> dict[str, Any]:
        """Measure what is not in the file yet, and return what it holds."""
        self._check_memory()
        for value in self._values:
            self._at_value(value)
            if self._axis.at_every_value:
                self._find_largest_of_all(value)
        if self._axis.grows and not self._axis.at_every_value:
            self._find_largest_of_all(None)
        self._file.finish()
        return self._file.result

    def _check(self) -> None:
        """Raise for what can be known to be wrong before anything is measured."""
        axis, recipe = self._axis, self._recipe
        searches_alone = axis.grows and not axis.at_every_value and recipe.memory
        if not self._values and not searches_alone:
            instead = ", or memory to search within" if axis.grows and not axis.at_every_value else ""
            raise RecipeError(f"bench {axis.name} needs values in {axis.field}{instead}; the recipe has none.")
        if axis.name == "budget" and not any(name.open for name in self._names):
            raise RecipeError("bench budget needs the arm budget or budget_checkpoint, without a size of its own.")
        workloads = [axis.at(self._workload, value) for value in self._values] or [self._workload]
        model = dataclasses.replace(workloads[0], device="meta").build_model()
        for name in self._names:
            try:
                for workload in workloads:
                    name.dynamics(self._dynamics).check(workload.layers)
                name.arm(self._dynamics, budget=1 if name.open else None).apply(model)
            except ValueError as error:
                raise RecipeError(f"The arm {name.text} cannot be measured: {error}") from error

    def _check_memory(self) -> None:
        """Learn how many bytes the recipe's memory is, and raise RecipeError where the device has fewer."""
        if not self._recipe.memory or not self._axis.grows:
            return
        with MeasuringProcess() as process:
            free, total = process.device_memory(self._recipe.device)
        for text in self._recipe.memory:
            self._memory[text] = free if text == FREE else parse_size(text)
            if self._memory[text] > total:
                raise RecipeError(f"memory {text} is more than the {size_in_words(total)} of {self._recipe.device}.")

    def _at_value(self, value: Value) -> None:
        """Measure memory and times of all arms at one value."""
        if self._file.find("points", value=value, memory=None):
            return
        workload = self._axis.at(self._workload, value)
        points = []
        for name in self._names:
            with MeasuringProcess() as process:
                arm = self._arm_at(process, name, workload, value)
                peak = self._peak(process, name.text, arm, workload, resident=True) if arm else None
            points.append(Point(value, None, name.text, workload, arm, peak))
        self._time(points, self._recipe.rounds, self._recipe.warm_up_rounds, None)

    def _arm_at(self, process: MeasuringProcess, name: ArmName, workload: Workload, value: Value) -> Arm | None:
        """Return the arm, its budget settled; None where plain_checkpoint, which it is to equal, does not fit."""
        if not name.open:
            return name.arm(self._dynamics)
        if isinstance(value, str) and value != CHECKPOINT:
            return name.arm(self._dynamics, parse_size(value))
        reference = self._peak(process, PLAIN_CHECKPOINT, Arm(PLAIN_CHECKPOINT), workload)
        return None if reference is None else self._equal_arm(process, name, workload, reference.peak, None)

    def _find_largest_of_all(self, value: Value) -> None:
        """Search for the largest batch or longest sequence of every arm within every memory, and time them there."""
        for text, memory in self._memory.items():
            if self._file.find("points", value=value, memory=text):
                continue
            points = {}
            # Open budgets come last: they are compared at the size that plain_checkpoint was found to reach.
            for name in sorted(self._names, key=lambda name: name.open):
                points[name.text] = self._largest(name, value, text)
            limit = memory if self._limits_allocator else None
            # Every arm has taken a step when the rounds begin, and at its largest a step is long.
            self._time([points[name.text] for name in self._names], self._recipe.rounds_at_largest, 0, limit)

    def _largest(self, name: ArmName, value: Value, text: str) -> Point:
        """Return an arm at the largest workload that fits."""
        workload, memory = self._axis.at(self._workload, value), self._memory[text]
        key = {"arm": name.text, "value": value, "memory": text}
        row = self._file.find("largest", **key)
        if row is None:
            with MeasuringProcess() as process:
                search = self._search_budget if name.open else self._search
                size, budget, peak = search(process, name, workload, value, memory)
            row = {**key, "memory_bytes": memory, self._axis.grows: size, "budget": budget}
            row["peak"] = dataclasses.asdict(peak) if peak else None
            self._file.add("largest", row)
            where = "" if value is None else f" at {self._axis.heading} {value}"
            size_in_words = f"largest {self._axis.grows} {size}" if size else "nothing fits"
            self._progress(f"{name.text}{where} within {text}: {size_in_words}")
        if not row[self._axis.grows]:
            return Point(value, text, name.text, workload, name.arm(self._dynamics, 1 if name.open else None), None)
        arm = name.arm(self._dynamics, row["budget"])
        sized = self._axis.sized(workload, row[self._axis.grows])
        return Point(value, text, name.text, sized, arm, PeakMemory(**row["peak"]))

    def _search(self, process: MeasuringProcess, name: ArmName, workload: Workload, value: Value, memory: int) -> Found:
        """Return the largest size of an arm within `memory`, its budget and its peak there."""
        grows = self._axis.grows
        unit = self._recipe.length_unit if grows == "sequence_length" else 1
        longest = workload.longest_sequence if grows == "sequence_length" else None
        arm = name.arm(self._dynamics)

        def peak(size: int) -> PeakMemory | None:
            sized = self._axis.sized(workload, size)
            return self._peak(process, name.text, arm, sized, memory=memory if self._limits_allocator else None)

        def measure(units: int) -> int | None:
            measured = peak(units * unit)
            return None if measured is None else measured.total

        size = unit * find_largest(
            measure,
            memory,
            known=self._known(name, workload, unit),
            limit=None if longest is None else longest // unit,
            tolerance=self._recipe.tolerance,
        )
        return size, name.budget, peak(size) if size else None

    def _search_budget(
        self, process: MeasuringProcess, name: ArmName, workload: Workload, value: Value, memory: int
    ) -> Found:
        """Return the size that plain_checkpoint reaches within `memory`, the largest budget there, and its peak."""
        limit = memory if self._limits_allocator else None
        of_checkpoint = self._file.find("largest", arm=PLAIN_CHECKPOINT, value=value, memory_bytes=memory)
        assert of_checkpoint is not None
        if of_checkpoint["peak"] is None:
            return 0, None, None
        sized = self._axis.sized(workload, of_checkpoint[self._axis.grows])
        room = memory - PeakMemory(**of_checkpoint["peak"]).constant
        arm = self._equal_arm(process, name, sized, room, limit)
        if arm is None:
            return 0, None, None
        size = of_checkpoint[self._axis.grows]
        return size, arm.budget, self._peak(process, name.text, arm, sized, memory=limit)

    def _equal_arm(
        self, process: MeasuringProcess, name: ArmName, workload: Workload, room: int, memory: int | None
    ) -> Arm | None:
        """Return the budget arm with the largest budget that was measured to peak within `room`.

        A budget does not cover what a single layer and the head need, so the measured peak lies above it by what they
        take; each trial corrects the budget by how far the last peak was off.
        """
        key = {"arm": name.text, **shape(workload), "room": room, "limit": memory}
        row = self._file.find("budgets", **key)
        if row is None:
            best, trial, seen = None, room // 2, set[int]()
            for _ in range(BUDGET_TRIALS):
                if trial < 1 or trial in seen or (best is not None and trial <= best):
                    break
                seen.add(trial)
                measured = self._peak(process, name.text, name.arm(self._dynamics, trial), workload, memory=memory)
                if measured is None:
                    trial //= 2
                    continue
                if measured.peak <= room:
                    best = trial
                    if room - measured.peak <= self._recipe.tolerance * room:
                        break
                trial += room - measured.peak
            row = {**key, "budget": best}
            self._file.add("budgets", row)
        return None if row["budget"] is None else name.arm(self._dynamics, row["budget"])

    def _peak(
        self,
        process: MeasuringProcess,
        text: str,
        arm: Arm,
        workload: Workload,
        *,
        memory: int | None = None,
        resident: bool = False,
    ) -> PeakMemory | None:
        """Return the memory of one step from the file, or measured; None where it runs out."""
        key = {"arm": text, "budget": arm.budget, **shape(workload), "limit": memory}
        row = self._file.find("peaks", **key)
        if row is None:
            try:
                measured = process.peak(workload, arm, memory=memory, resident=resident)
                row = {**key, **dataclasses.asdict(measured)}
                found = f"peak {size_in_words(measured.peak)}"
            except MemoryError as error:
                row = {**key, "out_of_memory": str(error)}
                found = "out of memory"
            self._file.add("peaks", row)
            budget = f" of {size_in_words(arm.budget)}" if arm.budget else ""
            self._progress(
                f"{text}{budget}, {workload.layers} layers, {workload.batch_size} x {workload.sequence_length} tokens: "
                f"{found}"
            )
        if "out_of_memory" in row:
            return None
        return PeakMemory(**{field.name: row[field.name] for field in dataclasses.fields(PeakMemory)})

    def _time(self, points: Sequence[Point], rounds: int, warm_up_rounds: int, memory: int | None) -> None:
        """Time the arms that fit in turns, and write their points."""
        tasks = {point.name: (point.workload, point.arm) for point in points if point.arm and point.peak}
        times = TurnTimes({})
        if rounds and tasks:
            try:
                with MeasuringProcess() as process:
                    times = process.times(tasks, rounds, warm_up_rounds, memory=memory)
            except MemoryError as error:
                self._progress(f"no times: {error}")
        self._file.add("points", *(point.row(points, times) for point in points))

    def _known(self, name: ArmName, workload: Workload, unit: int) -> dict[int, int]:
        """Return the bytes of sizes that were measured, by their number of units."""
        grows = self._axis.grows
        fixed = {key: size for key, size in shape(workload).items() if key != grows}
        return {
            row[grows] // unit: row["peak"] + row["weights_and_gradients"] + row["optimizer_states"]
            for row in self._file.result["peaks"]
            if row["arm"] == name.text
            and "peak" in row
            and row[grows] % unit == 0
            and all(row[key] == size for key, size in fixed.items())
        }


def settings(axis: Axis, recipe: BenchRecipe) -> dict[str, Any]:
    """Return what describes a study, in types that JSON keeps."""
    recurrence = recipe.recurrence()
    return {
        "study": axis.name,
        "recipe": recipe.to_dict(),
        "dynamics": recurrence.to_dict(),
        "recurrence": recurrence.recurrence,
    }
