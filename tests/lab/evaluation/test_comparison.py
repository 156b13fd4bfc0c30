import dataclasses
import math

import numpy as np
import pytest
from lm_eval.api.metrics import weighted_perplexity

from lab.evaluation import Difference, MeanAccuracy, MeanDifference, Score, compare, evaluate
from tests.lab.evaluation.tiny import damaged, tiny_model, tiny_tokenizer, write_data

TASKS = ["local_piqa", "local_wikitext"]
CHOICES = ["local_piqa", "local_arc_easy", "local_winogrande"]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("evaluation") / "data")
    models = tiny_model(), tiny_model(), damaged(tiny_model())
    return [evaluate(model, tiny_tokenizer(), TASKS, data=data) for model in models]


def score(items, aggregation="mean", value=0.0):
    terms = np.array([item if isinstance(item, tuple) else (item, 1) for item in items], dtype=float)
    return Score("task", "metric", "none", value, True, tuple(map(str, range(len(items)))), aggregation, terms)


def test_a_model_against_itself_differs_by_exactly_nothing(evaluations):
    original, repeated, _ = evaluations
    differences = compare(repeated, original).differences
    assert [(d.score.task, d.score.metric) for d in differences] == [
        ("local_piqa", "acc"),
        ("local_piqa", "acc_norm"),
        ("local_wikitext", "word_perplexity"),
        ("local_wikitext", "byte_perplexity"),
        ("local_wikitext", "bits_per_byte"),
    ]
    for difference in differences:
        assert (difference.value, difference.standard_error, difference.marked) == (0, 0, False)


def test_a_damaged_model_is_marked(evaluations):
    original, _, worse = evaluations
    differences = {difference.score.metric: difference for difference in compare(worse, original).differences}
    assert differences["bits_per_byte"].marked
    assert differences["bits_per_byte"].value > 0
    assert compare(original, worse).differences[-1].value == -differences["bits_per_byte"].value
    # The same documents are hard for both: without pairing the error would be larger.
    paired = differences["bits_per_byte"].standard_error
    assert 0 < paired < math.hypot(original.scores[-1].standard_error, worse.scores[-1].standard_error)


def test_the_paired_error_of_means_is_that_of_the_documents_differences():
    chance = np.random.default_rng(0)
    ours, theirs = chance.integers(0, 2, (2, 40)).astype(float)
    difference = Difference(score(ours), score(theirs))
    assert difference.standard_error == pytest.approx(np.std(ours - theirs, ddof=1) / math.sqrt(40), rel=1e-12)


def test_the_paired_error_of_a_corpus_metric_is_that_of_leaving_documents_out():
    chance = np.random.default_rng(0)
    words = chance.integers(20, 60, 15)
    theirs = -chance.gamma(4, 10, 15)
    ours = theirs - chance.gamma(2, 1, 15)
    left = [list(zip(values, words, strict=True)) for values in (ours, theirs)]
    difference = Difference(*(score(items, "weighted_perplexity") for items in left))
    values = [
        weighted_perplexity(left[0][:out] + left[0][out + 1 :])
        - weighted_perplexity(left[1][:out] + left[1][out + 1 :])
        for out in range(15)
    ]
    expected = math.sqrt(14 / 15 * sum((value - sum(values) / 15) ** 2 for value in values))
    assert difference.standard_error == pytest.approx(expected, rel=1e-9)


def test_the_mark_begins_beyond_two_standard_errors():
    ours, theirs = score([1, 1, 1, 0], value=0.75), score([0, 0, 0, 1], value=0.25)
    error = Difference(ours, theirs).standard_error
    assert error == pytest.approx(0.5)
    assert not Difference(ours, theirs).marked
    assert not Difference(dataclasses.replace(ours, value=0.25 + 1.99 * error), theirs).marked
    assert Difference(dataclasses.replace(ours, value=0.25 + 2.01 * error), theirs).marked


def test_scores_without_an_aggregation_have_a_difference_and_no_error():
    ours, theirs = score([], None, 0.75), score([], None, 0.5)
    assert (Difference(ours, theirs).value, Difference(ours, theirs).standard_error) == (0.25, None)
    assert not Difference(ours, theirs).marked


def test_other_documents_or_tasks_are_refused(evaluations):
    original, other, _ = evaluations
    shorter = [dataclasses.replace(s, documents=s.documents[1:]) for s in other.scores]
    with pytest.raises(ValueError, match="local_piqa are on different documents"):
        compare(original, dataclasses.replace(other, scores=tuple(shorter)))
    with pytest.raises(ValueError, match="different tasks"):
        compare(original, dataclasses.replace(other, scores=other.scores[:1]))


def test_the_means_of_several_tasks_are_compared_by_document(tmp_path):
    data = write_data(tmp_path / "data")
    models = tiny_model(), tiny_model(seed=1)
    ours, theirs = (evaluate(model, tiny_tokenizer(), CHOICES, data=data, limit=9) for model in models)
    plain, normalised = compare(ours, theirs).means
    assert (plain.score.metric, normalised.score.metric) == ("acc", "acc_norm, else acc")
    for difference, metrics in ((plain, ["acc"] * 3), (normalised, ["acc_norm", "acc_norm", "acc"])):
        rows = []
        for task, metric in zip(CHOICES, metrics, strict=True):
            both = [
                {(s.task, s.metric): s.terms[:, 0] for s in scores.scores}[task, metric] for scores in (ours, theirs)
            ]
            rows.append(both[0] - both[1])
        assert any(row.any() for row in rows)
        assert difference.value == pytest.approx(np.mean([row.mean() for row in rows]), rel=1e-12)
        error = math.sqrt(sum(row.var(ddof=1) / 9 for row in rows)) / 3
        assert difference.standard_error == pytest.approx(error, rel=1e-12)
    (nothing, _) = compare(ours, ours).means
    assert (nothing.value, nothing.standard_error, nothing.marked) == (0, 0, False)
    written = compare(ours, theirs).to_dict()["mean_differences"][1]
    assert written["tasks"] == {"local_piqa": "acc_norm", "local_arc_easy": "acc_norm", "local_winogrande": "acc"}
    assert written["difference"]["value"] == written["value"] - written["against"]["value"]


def test_the_error_of_a_mean_s_difference_covers_what_other_documents_would_have_given():
    """Against the truth: the spread over many samples of documents, each as hard for one model as for the other."""
    chance = np.random.default_rng(0)
    sizes = (30, 60, 120)

    def sample():
        scores = []
        for task, size in enumerate(sizes):
            hard = chance.random(size)
            answers = [(chance.random(size) < 0.2 + 0.6 * hard).astype(float) for _ in range(2)]
            scores.append([named(f"task {task}", right) for right in answers])
        ours, theirs = (MeanAccuracy("acc", tuple(column), ()) for column in zip(*scores, strict=True))
        return MeanDifference(ours, theirs)

    samples = [sample() for _ in range(300)]
    spread = np.std([difference.value for difference in samples], ddof=1)
    assert np.mean([difference.standard_error for difference in samples]) == pytest.approx(spread, rel=0.15)


def named(task, right):
    """The accuracy of a task of its own."""
    plain = score(right, value=float(np.mean(right)))
    return dataclasses.replace(plain, task=task, documents=tuple(f"{task} {name}" for name in plain.documents))
