"""Budgets at the measured peaks of their rivals."""

from collections.abc import Mapping
from typing import Any

from lab.bench.arm_names import BUDGETS, ORDINARY

Row = Mapping[str, Any]


def budgets_at_peaks(result: Row) -> list[tuple[Row, Row]]:
    """Return the points of a rival, such as plain_checkpoint, and of a budget at its peak, from the result of a study.

    A budget that is a size, and not the peak of an arm, has no rival.
    """
    points = {(point["value"], point["arm"]): point for point in result["points"] if point["memory"] is None}
    return [
        (points[value, f"{ORDINARY}{value}"], point)
        for (value, arm), point in points.items()
        if arm in BUDGETS and (value, f"{ORDINARY}{value}") in points
    ]
