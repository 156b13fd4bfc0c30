import math

import numpy as np
import pytest
from lm_eval.api.metrics import mean_stderr

from lab.evaluation import Score, evaluate
from lab.evaluation.mean_accuracy import mean_accuracies
from tests.lab.evaluation.tiny import tiny_model, tiny_tokenizer, write_data


def score(task, metric, right, documents=None, answer_filter="none", explained=True):
    """The accuracy of a task whose documents were answered rightly, 1, or wrongly, 0."""
    terms = np.array([(item, 1) for item in right], dtype=float) if explained else np.empty((0, 2))
    names = tuple(documents or (f"{task} {number}" for number in range(len(right))))
    aggregation = "mean" if explained else None
    return Score(task, metric, answer_filter, float(np.mean(right)), True, names, aggregation, terms)


PIQA = [score("piqa", "acc", [1, 1, 0, 0]), score("piqa", "acc_norm", [1, 1, 1, 0])]
ARC = [score("arc_easy", "acc", [1, 0, 0]), score("arc_easy", "acc_norm", [1, 1, 0])]
WINOGRANDE = [score("winogrande", "acc", [1, 1, 1, 1, 0])]
WIKITEXT = [score("wikitext", "word_perplexity", [1, 2])]


def test_each_task_counts_the_same_and_the_metrics_are_kept_apart():
    plain, normalised = mean_accuracies([*PIQA, *ARC, *WINOGRANDE], {})
    assert (plain.metric, normalised.metric) == ("acc", "acc_norm, else acc")
    assert plain.value == pytest.approx((2 / 4 + 1 / 3 + 4 / 5) / 3)
    assert normalised.value == pytest.approx((3 / 4 + 2 / 3 + 4 / 5) / 3)
    errors = [mean_stderr(items) for items in ([1, 1, 1, 0], [1, 1, 0], [1, 1, 1, 1, 0])]
    assert normalised.standard_error == pytest.approx(math.hypot(*errors) / 3)
    assert normalised.to_dict() == {
        "metric": "acc_norm, else acc",
        "tasks": {"piqa": "acc_norm", "arc_easy": "acc_norm", "winogrande": "acc"},
        "left_out": [],
        "value": normalised.value,
        "standard_error": normalised.standard_error,
    }


@pytest.mark.parametrize(
    ("scores", "metrics"),
    [
        ([*PIQA, *ARC], ["acc", "acc_norm"]),
        ([*WINOGRANDE, score("boolq", "acc", [1])], ["acc"]),
        ([PIQA[1], ARC[1]], ["acc_norm"]),
        ([PIQA[1], *WINOGRANDE], ["acc_norm, else acc"]),
        (PIQA, []),
        ([*PIQA, *WIKITEXT], []),
    ],
)
def test_only_what_every_task_has_is_averaged(scores, metrics):
    assert [mean.metric for mean in mean_accuracies(scores, {})] == metrics


def test_tasks_without_an_accuracy_are_named():
    chosen_elsewhere = score("mathqa", "acc", [1], answer_filter="first")
    (mean, _) = mean_accuracies([*WIKITEXT, *PIQA, *ARC, chosen_elsewhere], {})
    assert list(mean.tasks) == ["piqa", "arc_easy"]
    assert mean.left_out == ("wikitext", "mathqa")


def test_a_group_with_an_accuracy_of_its_own_counts_once():
    group = score("all", "acc", [1, 0, 0, 1])
    groups = {"all": ("inner", "piqa"), "inner": ("arc_easy",)}
    (mean,) = mean_accuracies([group, PIQA[0], ARC[0], *WINOGRANDE], groups)
    assert mean.scores == (group, *WINOGRANDE)
    assert mean.left_out == ()
    (mean,) = mean_accuracies([PIQA[0], ARC[0], *WINOGRANDE], groups)
    assert mean.scores == (PIQA[0], ARC[0], *WINOGRANDE)


def test_there_is_no_error_where_a_task_has_none_or_two_share_a_document():
    for other in (
        score("one", "acc", [1]),
        score("mean of means", "acc", [1, 0], explained=False),
        score("local_piqa", "acc", [1, 1, 0, 0], documents=PIQA[0].documents),
    ):
        (mean,) = mean_accuracies([PIQA[0], other], {})
        assert mean.value == (PIQA[0].value + other.value) / 2
        assert mean.standard_error is None


def test_an_evaluation_has_the_means_of_its_tasks(tmp_path):
    tasks = ["local_piqa", "local_arc_easy", "local_winogrande", "local_wikitext"]
    data = write_data(tmp_path / "data")
    evaluation = evaluate(tiny_model(), tiny_tokenizer(), tasks, data=data, limit=5)
    assert {len(score.documents) for score in evaluation.scores} == {5}
    values = {(score.task, score.metric): score.value for score in evaluation.scores}
    plain, normalised = evaluation.means
    assert plain.value == pytest.approx(sum(values[task, "acc"] for task in tasks[:3]) / 3)
    pairs = zip(tasks[:3], ("acc_norm", "acc_norm", "acc"), strict=True)
    assert normalised.value == pytest.approx(sum(values[pair] for pair in pairs) / 3)
    assert normalised.left_out == ("local_wikitext",)
    assert evaluation.to_dict()["means"] == [plain.to_dict(), normalised.to_dict()]
