"""The scores of an evaluation: one for each task, metric and filter, with the terms of its documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lab.evaluation import jackknife
from lab.evaluation.mean_accuracy import MeanAccuracy, mean_accuracies


@dataclass(frozen=True)
class Score:
    """One metric of one task, or of a group of tasks.

    Attributes:
        filter: The filter of the scored answers, such as strict-match; "none" if a task has no filter.
        value: The harness's value.
        documents: A hash of each scored document, in the order of the terms.
        aggregation: A name of `jackknife.TRANSFORMS`, or None for a value that is not such a function of its documents'
            terms.
        terms: float64[documents, 2], see `lab.evaluation.jackknife`; empty if `aggregation` is None.

    """

    task: str
    metric: str
    filter: str
    value: float
    higher_is_better: bool | None
    documents: tuple[str, ...] = field(repr=False)
    aggregation: str | None = field(repr=False)
    terms: np.ndarray = field(repr=False, compare=False)

    @cached_property
    def without_each(self) -> np.ndarray | None:
        """float64[documents], the value without each; None without an aggregation or with only one document."""
        if self.aggregation is None or len(self.terms) < 2:
            return None
        return jackknife.values_without_each(self.terms, self.aggregation)

    @property
    def standard_error(self) -> float | None:
        """The jackknife's standard error, or None if `without_each` is."""
        return None if self.without_each is None else jackknife.standard_error(self.without_each)

    def to_dict(self) -> dict[str, Any]:
        """Return the score in types that JSON supports, with the number of its documents instead of their terms."""
        names = ("task", "metric", "filter", "value", "standard_error", "higher_is_better")
        return {name: getattr(self, name) for name in names} | {"documents": len(self.documents)}


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
        requests: Number of continuations or answers that each task requested.
        truncated: Number of these requests that lost the beginning of their context because the model cannot read so
            much.
        few_shot: Number of solved examples before each question, by task.
        versions: The version of each task's definition.
        groups: The tasks and groups directly below each group.
        first_token: The token that precedes text without a context, such as a document of word perplexity.

    """

    scores: tuple[Score, ...]
    requests: Mapping[str, int]
    truncated: Mapping[str, int]
    few_shot: Mapping[str, int]
    versions: Mapping[str, Any]
    groups: Mapping[str, Sequence[str]]
    first_token: int

    @property
    def means(self) -> tuple[MeanAccuracy, ...]:
        """The mean accuracies over the tasks, see `lab.evaluation.mean_accuracy`; empty for fewer than two tasks."""
        return mean_accuracies(self.scores, self.groups)

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation in types that JSON supports."""
        names = ("requests", "truncated", "few_shot", "versions")
        return {
            "scores": [score.to_dict() for score in self.scores],
            "means": [mean.to_dict() for mean in self.means],
            **{name: dict(getattr(self, name)) for name in names},
            "first_token": self.first_token,
        }


def read_scores(output: Mapping[str, Any], aggregations: Mapping[str, Mapping[str, str]]) -> tuple[Score, ...]:
    """Return the scores in the harness's `output`.

    A group of tasks has the documents of all its tasks: the harness's mean over a group, weighted by size, equals the
    mean over them. A group that is aggregated differently gets no aggregation and no standard error.

    Args:
        output: the result of `lm_eval.evaluator.evaluate`, with samples.
        aggregations: the name of every metric's aggregation, by task.

    """
    scores = []
    for name, values in output["results"].items():
        tasks = _tasks_of(name, output)
        for key, value in values.items():
            metric, comma, answer_filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = [sample for task in tasks for sample in _samples(output, task, metric, answer_filter)]
            aggregation, terms = _explain(value, [sample[metric] for sample in samples], metric, tasks, aggregations)
            better = {output["higher_is_better"].get(task, {}).get(metric) for task in tasks}
            scores.append(
                Score(
                    task=name,
                    metric=metric,
                    filter=answer_filter,
                    value=float(value),
                    higher_is_better=better.pop() if len(better) == 1 else None,
                    documents=tuple(sample["doc_hash"] for sample in samples),
                    aggregation=aggregation,
                    terms=terms,
                )
            )
    return tuple(scores)


def _tasks_of(name: str, output: Mapping[str, Any]) -> list[str]:
    """Return the tasks below a group, or the task `name` itself."""
    if name in output["samples"]:
        return [name]
    return [task for child in output["group_subtasks"].get(name, []) for task in _tasks_of(child, output)]


def _samples(output: Mapping[str, Any], task: str, metric: str, answer_filter: str) -> list[Mapping[str, Any]]:
    return [sample for sample in output["samples"][task] if sample["filter"] == answer_filter and metric in sample]


def _explain(
    value: float, items: list[Any], metric: str, tasks: list[str], aggregations: Mapping[str, Mapping[str, str]]
) -> tuple[str | None, np.ndarray]:
    """Return the aggregation and the terms that give `value`, or None and no terms if there are none."""
    names = {aggregations[task].get(metric) for task in tasks}
    nothing = None, np.empty((0, 2))
    name = names.pop() if len(names) == 1 else None
    if name not in jackknife.TRANSFORMS:
        return nothing
    weighted = [item if isinstance(item, tuple | list) else (item, 1) for item in items]
    terms = np.array(weighted, dtype=np.float64)
    explained = bool(np.isclose(jackknife.value(terms, name), value, rtol=1e-9, atol=0))
    return (name, terms) if explained else nothing
