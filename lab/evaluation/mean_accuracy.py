"""Mean accuracy over several tasks, as in published tables of zero-shot accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.evaluation.scores import Score

ACCURACIES = ("acc", "acc_norm")
"""The harness's accuracies: the most likely choice is right; the most likely by the length of its text is right."""


@dataclass(frozen=True)
class MeanAccuracy:
    """The mean of one accuracy over several tasks, all with the same weight.

    Attributes:
        metric: "acc"; "acc_norm"; or "acc_norm, else acc": acc_norm of tasks that have it, acc of the others.
        left_out: The other evaluated tasks, which have neither accuracy.

    """

    metric: str
    scores: tuple["Score", ...]
    left_out: tuple[str, ...]

    @property
    def value(self) -> float:
        """The mean of the scores' values."""
        return math.fsum(score.value for score in self.scores) / len(self.scores)

    @property
    def tasks(self) -> dict[str, str]:
        """The metric that each task contributes."""
        return {score.task: score.metric for score in self.scores}

    @property
    def standard_error(self) -> float | None:
        """The standard error with independent tasks, or None if `error_of_mean` is."""
        return self.error_of_mean([score.standard_error for score in self.scores])

    def error_of_mean(self, errors: Sequence[float | None]) -> float | None:
        """Return sqrt(sum of squares of the tasks' standard errors) / number of tasks.

        It is None if a task has none, or if two tasks share a document and so are not independent.
        """
        known = [error for error in errors if error is not None]
        documents = [set(score.documents) for score in self.scores]
        if len(known) < len(errors) or len(set().union(*documents)) < sum(map(len, documents)):
            return None
        return math.hypot(*known) / len(known)

    def to_dict(self) -> dict[str, Any]:
        """Return the mean in types that JSON supports."""
        return {
            "metric": self.metric,
            "tasks": self.tasks,
            "left_out": list(self.left_out),
            "value": self.value,
            "standard_error": self.standard_error,
        }


def mean_accuracies(scores: Sequence["Score"], groups: Mapping[str, Sequence[str]]) -> tuple[MeanAccuracy, ...]:
    """Return the mean of acc, if every task has it, and the mean of acc_norm, else acc, if that differs.

    A group with an accuracy of its own counts as one task instead of its tasks. If a task filters its answers in
    several ways, only the unfiltered answers count. A mean needs at least two tasks.

    Args:
        scores: the scores of an evaluation.
        groups: the tasks and groups directly below each group.

    """
    found: dict[str, dict[str, Score]] = {}
    for score in scores:
        if score.metric in ACCURACIES and score.filter == "none":
            found.setdefault(score.task, {})[score.metric] = score
    below = {part for task in found for part in _below(task, groups)}
    counted = [accuracies for task, accuracies in found.items() if task not in below]
    if len(counted) < 2:
        return ()
    left_out = tuple(dict.fromkeys(score.task for score in scores if score.task not in found.keys() | below))
    means = []
    if all("acc" in accuracies for accuracies in counted):
        means.append(MeanAccuracy("acc", tuple(accuracies["acc"] for accuracies in counted), left_out))
    normalised = tuple(accuracies.get("acc_norm") or accuracies["acc"] for accuracies in counted)
    metrics = {score.metric for score in normalised}
    if "acc_norm" in metrics:
        name = "acc_norm, else acc" if "acc" in metrics else "acc_norm"
        means.append(MeanAccuracy(name, normalised, left_out))
    return tuple(means)


def _below(name: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the tasks and groups below a group, at any depth."""
    children = groups.get(name, ())
    return set(children).union(*(_below(child, groups) for child in children))
