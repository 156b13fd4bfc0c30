"""Studies over depth, batch size, sequence length or budget: peak memory, step times, and the largest that fits."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lab.bench.arm_names import ORDINARY_CHECKPOINT, ArmName, smallest_budget_of
from lab.bench.memory import TurnTimes
from lab.bench.process import MeasuringProcess
from lab.bench.recipe import FREE, BenchRecipe
from lab.bench.search import find_largest
from lab.bench.study_axis import Axis, Value
from lab.bench.study_file import StudyFile
from lab.bench.study_peaks import StudyPeaks
from lab.bench.study_point import Point
from lab.bench.workload import MeasuredWorkload
from revformers.byte_size import parse_size, size_in_words
from revformers.errors import UserError
from revformers.setup import CHECKPOINT, Setup


class Study:
    """One study of one recipe.

    Its file holds, in the order of measurement:

    * ``memory``: the bytes of each memory that limits a search;
    * ``peaks``: the memory of one step of one arm, or that it ran out of memory; including the trials of searches;
    * ``budgets``: the budget at which a budget arm has the same peak as the arm it is compared with;
    * ``largest``: the largest batch or longest sequence of an arm within a memory;
    * ``points``: the result, one row per arm at every value, and at its largest size within every memory: its peak and,
      if it fits, its step times, taken in turns with the other arms.

    Args:
        axis: the quantity that varies.
        recipe: the network, the arms and the values to measure.
        file: where rows are kept; a study that continues finds them there.
        progress: called with one line after each measurement.

    Raises:
        UserError: if the recipe has nothing to vary, or its network cannot be trained in the way of an arm.
        NotReversibleError: if the network cannot have the dynamics.

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
        self._peaks = StudyPeaks(file, recipe.tolerance, progress)
        self._check()

    def run(self) -> dict[str, Any]:
        """Measure everything that is not in the file yet, and return its content."""
        self._read_memory()
        for value in self._values:
            self._at_value(value)
            if self._axis.at_every_value:
                self._find_largest_of_all(value)
        if self._axis.grows and not self._axis.at_every_value:
            self._find_largest_of_all(None)
        self._file.finish()
        return self._file.result

    def _check(self) -> None:
        """Raise for mistakes that can be found before anything is measured."""
        axis, recipe = self._axis, self._recipe
        searches_alone = axis.grows and not axis.at_every_value and recipe.memory
        if not self._values and not searches_alone:
            instead = ", or memory to search within" if axis.grows and not axis.at_every_value else ""
            raise UserError(f"bench {axis.name} needs values in {axis.field}{instead}; the recipe has none.")
        if axis.name == "budget" and not any(name.open for name in self._names):
            raise UserError("bench budget needs the arm budget or budget_checkpoint, without a size of its own.")
        for text in recipe.budgets if axis.name == "budget" else ():
            if (other := recipe.arm_to_equal(text)) is not None and other not in recipe.arms:
                raise UserError(f"The budget {text} needs the arm {other}, whose peak sets it; add that arm.")
        longest = self._workload.longest_sequence
        if axis.grows == "sequence_length" and recipe.memory and longest is not None and longest < recipe.length_unit:
            raise UserError(
                f"The model reads {longest} tokens at most, fewer than the length_unit of {recipe.length_unit}, whose "
                f"multiples are tried; lower it, or raise max_position_embeddings in model.config."
            )
        workloads = [axis.at(self._workload, value) for value in self._values] or [self._workload]
        model = dataclasses.replace(workloads[0], device="meta").build_model()
        for name in self._names:
            arm = name.setup(self._dynamics, budget=1 if name.open else None)
            try:
                for workload in workloads:
                    name.dynamics(self._dynamics).check(workload.layers)
                arm.apply(model)
            except ValueError as error:
                raise UserError(f"The arm {name.text} cannot be measured: {error}") from error
            budgets = [parse_size(text) for text in recipe.budgets if name.open and not recipe.arm_to_equal(text)]
            if axis.name == "budget" and budgets and min(budgets) < smallest_budget_of(arm, self._workload):
                smallest = size_in_words(smallest_budget_of(arm, self._workload))
                raise UserError(f"The smallest of the budgets is below the {smallest} that {name.text} needs at least.")

    def _read_memory(self) -> None:
        """Determine the bytes of the recipe's memory, and raise UserError if the device has fewer."""
        for text in self._recipe.memory if self._axis.grows else ():
            row = self._file.find("memory", memory=text)
            if row is None:
                with MeasuringProcess() as process:
                    free, total = process.device_memory(self._recipe.device)
                row = {"memory": text, "bytes": free if text == FREE else parse_size(text)}
                if row["bytes"] > total:
                    raise UserError(f"memory {text} is more than the {size_in_words(total)} of {self._recipe.device}.")
                self._file.add("memory", row)
            self._memory[text] = row["bytes"]

    def _at_value(self, value: Value) -> None:
        """Measure memory and times of all arms at one value."""
        if self._file.find("points", value=value, memory=None):
            return
        workload = self._axis.at(self._workload, value)

        def measured(process: MeasuringProcess, name: ArmName) -> Point:
            arm = self._arm_at(process, name, workload, value)
            peak = self._peaks.measure(process, name.text, arm, workload, resident=True) if arm else None
            return Point(value, None, name.text, workload, arm, peak)

        self._time(self._of_all(measured), self._recipe.rounds, self._recipe.warm_up_rounds, None)

    def _of_all(self, point: Callable[[MeasuringProcess, ArmName], Point]) -> list[Point]:
        """Return the points of all arms in the recipe's order; open budgets are measured last, as others set them.

        Resident memory needs a fresh process for every arm. The allocator of a GPU counts whatever came before, so arms
        share a process there, because starting one takes longer than most steps.
        """
        in_order = sorted(self._names, key=lambda name: name.open)
        points: dict[str, Point] = {}
        for together in [in_order] if self._limits_allocator else [[name] for name in in_order]:
            with MeasuringProcess() as process:
                points |= {name.text: point(process, name) for name in together}
        return [points[name.text] for name in self._names]

    def _arm_at(
        self, process: MeasuringProcess, name: ArmName, workload: MeasuredWorkload, value: Value
    ) -> Setup | None:
        """Return the arm with its budget set, or None if the arm whose peak it must equal does not fit."""
        if not name.open:
            return name.setup(self._dynamics)
        other = self._recipe.arm_to_equal(value) if isinstance(value, str) else ORDINARY_CHECKPOINT
        if other is None:
            return name.setup(self._dynamics, parse_size(str(value)))
        reference = self._peaks.measure(process, other, ArmName.parse(other).setup(self._dynamics), workload)
        if reference is None:
            return None
        arm_of = partial(name.setup, self._dynamics)
        budget = self._peaks.equal_budget(process, name.text, arm_of, workload, reference.peak)
        return None if budget is None else arm_of(budget)

    def _find_largest_of_all(self, value: Value) -> None:
        """Search for the largest batch or longest sequence of every arm within every memory, and time them there."""
        for text, memory in self._memory.items():
            if self._file.find("points", value=value, memory=text):
                continue
            points = self._of_all(partial(self._largest, value=value, text=text))
            # Every arm has already taken a step when the rounds begin, and a step at the largest size takes long.
            self._time(points, self._recipe.rounds_at_largest, 0, self._limit(memory))

    def _largest(self, process: MeasuringProcess, name: ArmName, value: Value, text: str) -> Point:
        """Return the point of an arm at the largest workload that fits."""
        axis, memory = self._axis, self._memory[text]
        workload = axis.at(self._workload, value)
        key = {"arm": name.text, "value": value, "memory": text}
        row = self._file.find("largest", **key)
        if row is None:
            if name.open:
                size, budget = self._search_budget(process, name, workload, value, text)
            else:
                size, budget = self._search(process, name, workload, memory), name.budget
            row = {**key, axis.grows: size, "budget": budget}
            self._file.add("largest", row)
            where = "" if value is None else f" at {axis.heading} {value}"
            self._progress(f"{name.text}{where} within {text}: largest {axis.grows} {size or 'none'}")
        if not row[axis.grows]:
            return Point(value, text, name.text, workload, None if name.open else name.setup(self._dynamics), None)
        arm = name.setup(self._dynamics, row["budget"] if name.open else None)
        sized = axis.sized(workload, row[axis.grows])
        peak = self._peaks.measure(process, name.text, arm, sized, limit=self._limit(memory))
        return Point(value, text, name.text, sized, arm, peak)

    def _search(self, process: MeasuringProcess, name: ArmName, workload: MeasuredWorkload, memory: int) -> int:
        """Return the largest size of an arm that fits in `memory`, or 0."""
        axis, arm = self._axis, name.setup(self._dynamics)
        unit = self._recipe.length_unit if axis.grows == "sequence_length" else 1
        longest = workload.longest_sequence if axis.grows == "sequence_length" else None

        def total(units: int) -> int | None:
            sized = axis.sized(workload, units * unit)
            measured = self._peaks.measure(process, name.text, arm, sized, limit=self._limit(memory))
            return None if measured is None else measured.total

        known = self._peaks.of_sizes(name.text, workload, axis.grows)
        return unit * find_largest(
            total,
            memory,
            known={size // unit: total for size, total in known.items() if size % unit == 0},
            limit=None if longest is None else longest // unit,
            tolerance=self._recipe.tolerance,
        )

    def _search_budget(
        self, process: MeasuringProcess, name: ArmName, workload: MeasuredWorkload, value: Value, text: str
    ) -> tuple[int, int | None]:
        """Return the size that plain_checkpoint reaches and the largest budget there, or 0 and None."""
        axis, memory = self._axis, self._memory[text]
        row = self._file.find("largest", arm=ORDINARY_CHECKPOINT, value=value, memory=text)
        assert row is not None
        if not row[axis.grows]:
            return 0, None
        sized, limit = axis.sized(workload, row[axis.grows]), self._limit(memory)
        reference = self._peaks.measure(process, ORDINARY_CHECKPOINT, CHECKPOINT, sized, limit=limit)
        assert reference is not None
        arm_of = partial(name.setup, self._dynamics)
        budget = self._peaks.equal_budget(process, name.text, arm_of, sized, memory - reference.constant, limit)
        return (row[axis.grows], budget) if budget else (0, None)

    def _limit(self, memory: int) -> int | None:
        """Return the limit for the allocator: a GPU's enforces it, while a CPU's memory is only counted."""
        return memory if self._limits_allocator else None

    def _time(self, points: Sequence[Point], rounds: int, warm_up_rounds: int, memory: int | None) -> None:
        """Time the arms that fit in turns, and write their points."""
        tasks = {point.name: (point.workload, point.arm) for point in points if point.arm and point.peak}
        times = TurnTimes({})
        if rounds and tasks:
            try:
                with MeasuringProcess(returns_memory=False) as process:
                    times = process.times(tasks, rounds, warm_up_rounds, memory=memory)
            except MemoryError as error:
                self._progress(f"no times: {error}")
        self._file.add("points", *(point.row(points, times) for point in points))


def settings(axis: Axis, recipe: BenchRecipe) -> dict[str, Any]:
    """Return the description of a study, in types that JSON supports."""
    recurrence = recipe.recurrence()
    return {
        "study": axis.name,
        "recipe": recipe.to_dict(),
        "dynamics": recurrence.to_dict(),
        "recurrence": recurrence.recurrence,
    }
