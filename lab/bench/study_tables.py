"""A study as tables in the terminal; in a narrow terminal every row is a block of lines."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType

from lab.bench import numbers
from lab.bench.arm_names import ORDINARY_CHECKPOINT, ORDINARY_STORE
from lab.bench.equal_peaks import budgets_at_peaks
from lab.bench.study_axis import AXES
from revformers.byte_size import size_in_words
from revformers.training.titled_table import TitledTable

NOTHING = "-"

Row = Mapping[str, Any]


def study_tables(result: Row) -> RenderableType:
    """Return the tables of the result of `Study.run`."""
    tables = [_at_values(result), _at_peaks(result), _at_largest(result)]
    return Group(*(table for table in tables if table.rows))


def network_in_words(recipe: Row) -> str:
    """Describe the network and the batch of a study in one line."""
    values = [recipe["model"]["architecture"], *(f"{key} {value}" for key, value in recipe["model"]["config"].items())]
    optimizer = "" if recipe["optimizer"] == "none" else f", {recipe['optimizer']}"
    return (
        f"{', '.join(map(str, values))}; {recipe['precision']} on {recipe['device']}, {recipe['head']} head{optimizer}"
    )


def rate_heading(result: Row) -> str:
    """Return the unit of the speeds of a study."""
    return "tokens/s" if result["study"] == "length" else "samples/s"


def rate(result: Row, point: Row) -> float | None:
    """Return the speed of a point, or None if it was not timed."""
    if "samples_per_second" not in point:
        return None
    tokens = point["sequence_length"] if result["study"] == "length" else 1
    return float(point["samples_per_second"] * tokens)


def _at_values(result: Row) -> TitledTable:
    """Return one line per value and arm."""
    recipe = result["recipe"]
    table = TitledTable(
        f"bench {result['study']}: one training step of every arm",
        f"{network_in_words(recipe)}\n"
        f"Peak: above weights, gradients and optimizer states. Times: median of {recipe['rounds']} rounds in turns; "
        f"over {ORDINARY_STORE} and {ORDINARY_CHECKPOINT} (quartiles) within a round.",
        left=(AXES[result["study"]].heading, "arm"),
        right=("peak", "step", rate_heading(result), "over store", "over checkpoint"),
        wraps="over checkpoint",
    )
    last = None
    for point in (point for point in result["points"] if point["memory"] is None):
        ratios = point.get("ratios", {})
        table.add(
            "" if point["value"] == last else _value(point["value"]),
            point["arm"],
            _fits(point, "peak"),
            numbers.seconds(point["seconds"]["median"]) if "seconds" in point else NOTHING,
            _written(rate(result, point)),
            f"{ratios[ORDINARY_STORE]['median']:.2f}" if ORDINARY_STORE in ratios else NOTHING,
            numbers.ratio(ratios[ORDINARY_CHECKPOINT]) if ORDINARY_CHECKPOINT in ratios else NOTHING,
        )
        last = point["value"]
    return table


def _at_peaks(result: Row) -> TitledTable:
    """Return one line per budget that was measured at the peak of another arm."""
    table = TitledTable(
        f"bench {result['study']}: budgets at the peaks of their rivals",
        "Times: over the rival, within a round (quartiles).",
        left=("rival", "arm"),
        right=("peak of the rival", "peak", "over the rival"),
    )
    for rival, budget in budgets_at_peaks(result):
        ratio = budget.get("ratios", {}).get(rival["arm"])
        table.add(
            rival["arm"],
            budget["arm"],
            _fits(rival, "peak"),
            _fits(budget, "peak"),
            NOTHING if ratio is None else numbers.ratio(ratio),
        )
    return table


def _at_largest(result: Row) -> TitledTable:
    """Return one line per value, memory and arm, each at the largest size that fits."""
    recipe, grows = result["recipe"], AXES[result["study"]].grows
    points = [point for point in result["points"] if point["memory"] is not None]
    by_value = any(point["value"] is not None for point in points)
    table = TitledTable(
        f"bench {result['study']}: the largest {grows.replace('_', ' ')} that fits",
        f"{network_in_words(recipe)}\n"
        f"Weights, gradients and optimizer states count.\n{_beyond(recipe, grows)}\n"
        f"Budgets without a size are measured at the largest size of {ORDINARY_CHECKPOINT}, with all of the memory.",
        left=(*([AXES[result["study"]].heading] if by_value else []), "memory", "arm"),
        right=(
            "batch" if grows == "batch_size" else "tokens",
            "over store",
            "total",
            rate_heading(result),
            "over store",
        ),
    )
    last: tuple[Any, ...] = ()
    for point in points:
        same = [other for other in points if (other["value"], other["memory"]) == (point["value"], point["memory"])]
        stored = next((other for other in same if other["arm"] == ORDINARY_STORE and other["fits"]), None)
        heads = [*([_value(point["value"])] if by_value else []), point["memory"]]
        new = (point["value"], point["memory"]) != last
        last = (point["value"], point["memory"])
        table.add(
            *(head if new else "" for head in heads),
            point["arm"],
            f"{point[grows]:,}" if point["fits"] else NOTHING if point["fits"] is None else "0",
            _multiple(point, stored, lambda one: one[grows]),
            _fits(point, "total"),
            _written(rate(result, point)),
            _multiple(point, stored, lambda one: rate(result, one)),
        )
    return table


def _beyond(recipe: Row, grows: str) -> str:
    """Explain why a largest batch or a longest sequence is not larger."""
    unit, or_else = "1", ""
    if grows == "sequence_length":
        unit, or_else = f"{recipe['length_unit']} tokens", ", or exceeds what the model reads"
    return f"A size {recipe['tolerance']:.0%} (or {unit}) larger does not fit{or_else}."


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _fits(point: Row, figure: str) -> str:
    """Format a number of bytes, or the reason that there is none."""
    if point["fits"] is None:
        return "none equal"
    if not point["fits"]:
        return "does not fit"  # memory ran out, or a budget is less than the least that this batch needs
    total = point["peak"] + point["weights_and_gradients"] + point["optimizer_states"]
    return size_in_words(point["peak"] if figure == "peak" else total)


def _written(number: float | None) -> str:
    return NOTHING if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _multiple(point: Row, reference: Row | None, figure: Callable[[Row], float | None]) -> str:
    """Format the ratio of a figure to that of the reference."""
    if reference is None or not point["fits"]:
        return NOTHING
    one, other = figure(point), figure(reference)
    return f"{one / other:.2f}" if one and other else NOTHING
