"""The quantity that a study varies."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lab.bench.workload import MeasuredWorkload

Value = int | str | None


@dataclass(frozen=True)
class Axis:
    """The quantity that a study varies.

    Attributes:
        name: name of the study.
        heading: the heading of its values in tables.
        field: the field of the recipe that holds the values.
        grows: the size of a workload whose largest value is searched for: batch_size, sequence_length, or empty.
        at_every_value: whether to search at every value, or once.

    """

    name: str
    heading: str
    field: str
    grows: str = ""
    at_every_value: bool = False

    def at(self, workload: MeasuredWorkload, value: Value) -> MeasuredWorkload:
        """Return the workload at one value."""
        if self.name == "depth":
            assert isinstance(value, int)
            return workload.with_layers(value)
        if self.name == "budget" or value is None:
            return workload
        assert isinstance(value, int)
        return self.sized(workload, value)

    def sized(self, workload: MeasuredWorkload, size: int) -> MeasuredWorkload:
        """Return the workload with another value of the size in `grows`."""
        changes: dict[str, Any] = {self.grows: size}
        return dataclasses.replace(workload, **changes)


AXES = {
    axis.name: axis
    for axis in (
        Axis("depth", "layers", "depths", "batch_size", at_every_value=True),
        Axis("batch", "batch", "batch_sizes", "batch_size"),
        Axis("length", "tokens", "sequence_lengths", "sequence_length"),
        Axis("budget", "budget", "budgets"),
    )
}
