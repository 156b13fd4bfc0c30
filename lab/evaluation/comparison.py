"""Comparison of two evaluations on the same documents."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from lab.evaluation import jackknife
from lab.evaluation.mean_accuracy import MeanAccuracy
from lab.evaluation.scores import Evaluation, Score


class _SideBySide(ABC):
    """A value of one model beside that of another."""

    score: Score | MeanAccuracy
    against: Score | MeanAccuracy

    @property
    def value(self) -> float:
        """The first model's value minus the second's."""
        return self.score.value - self.against.value

    @property
    @abstractmethod
    def standard_error(self) -> float | None:
        """The standard error of the difference, or None if it is not known."""

    @property
    def marked(self) -> bool:
        """Whether the difference exceeds two of its standard errors."""
        error = self.standard_error
        return error is not None and abs(self.value) > 2 * error

    def to_dict(self) -> dict[str, Any]:
        """Return the difference in types that JSON supports."""
        return {
            **self.score.to_dict(),
            "against": {"value": self.against.value, "standard_error": self.against.standard_error},
            "difference": {"value": self.value, "standard_error": self.standard_error, "marked": self.marked},
        }


@dataclass(frozen=True)
class Difference(_SideBySide):
    """One score of a model beside that of another, on the same documents."""

    score: Score
    against: Score

    @property
    def standard_error(self) -> float | None:
        """The standard error of the difference, paired by document; None if a score has no standard error.

        Let d_(i) be the difference of the two values when document i is left out of both, and n the number of
        documents. The standard error is sqrt((n - 1) / n * sum_i (d_(i) - mean_j d_(j))^2). For means this is the
        sample standard deviation of the documents' differences divided by sqrt(n).
        """
        ours, theirs = self.score.without_each, self.against.without_each
        return None if ours is None or theirs is None else jackknife.standard_error(ours - theirs)


@dataclass(frozen=True)
class MeanDifference(_SideBySide):
    """One mean accuracy of a model beside that of another, on the same documents of the same tasks."""

    score: MeanAccuracy
    against: MeanAccuracy

    @property
    def standard_error(self) -> float | None:
        """The standard error of the difference, paired by document, with independent tasks.

        It is sqrt(sum of squares of the tasks' `Difference.standard_error`) / number of tasks, or None if
        `MeanAccuracy.error_of_mean` is.
        """
        pairs = zip(self.score.scores, self.against.scores, strict=True)
        return self.score.error_of_mean([Difference(ours, theirs).standard_error for ours, theirs in pairs])


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    Attributes:
        means: The differences of `Evaluation.means`.

    """

    differences: tuple[Difference, ...]
    means: tuple[MeanDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison in types that JSON supports."""
        return {
            "differences": [difference.to_dict() for difference in self.differences],
            "mean_differences": [difference.to_dict() for difference in self.means],
        }


def compare(evaluation: Evaluation, against: Evaluation) -> Comparison:
    """Return the differences of all scores and mean accuracies of `evaluation` from those of `against`.

    Raises:
        ValueError: if the two were not evaluated on the same metrics of the same documents.

    """
    others = {_name(score): score for score in against.scores}
    if {_name(score) for score in evaluation.scores} != others.keys():
        raise ValueError("The two evaluations are of different tasks; evaluate both models on the same ones.")
    for score in evaluation.scores:
        if score.documents != others[_name(score)].documents:
            raise ValueError(f"The two evaluations of {score.task} are on different documents; repeat one of them.")
    return Comparison(
        differences=tuple(Difference(score, others[_name(score)]) for score in evaluation.scores),
        means=tuple(MeanDifference(ours, theirs) for ours, theirs in zip(evaluation.means, against.means, strict=True)),
    )


def _name(score: Score) -> tuple[str, str, str]:
    return score.task, score.metric, score.filter
