import json

import pytest

from revformers import BlendedMidpoint, Midpoint, Residual
from revformers.benchmark import depth
from revformers.benchmark.studies import study_memory, study_time
from revformers.benchmark.workload import Workload, llama_config
from tests.benchmark.example import measure_here

WORKLOAD = Workload(llama_config(2, 32, 16, 32), batch_size=2, sequence_length=32)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(depth, "measure_peak_memory", measure_here)


def test_the_memory_study_holds_every_point_and_its_growth():
    points = []
    result = study_memory(WORKLOAD, Midpoint(), ["checkpoint", "rebuild"], [4, 2], points.append)
    result = json.loads(json.dumps(result))
    assert [(row["arm"], row["layers"]) for row in result["points"]] == [
        ("checkpoint", 2), ("checkpoint", 4), ("rebuild", 2), ("rebuild", 4)
    ]  # fmt: skip
    assert {row["arm"]: row["from_layers"] for row in result["growth"]} == {"checkpoint": 2, "rebuild": 2}
    assert result["dynamics"]["name"] == "midpoint"
    assert result["layer_input_bytes"] == 2 * 32 * 32 * 4
    assert len(points) == 4


def test_the_time_study_holds_every_round_and_ratio():
    result = study_time(WORKLOAD, Midpoint(), ["plain_store", "checkpoint", "rebuild"], rounds=3, warm_up_rounds=1)
    result = json.loads(json.dumps(result))
    assert result["references"] == ["plain_store", "checkpoint"]
    rebuild = result["arms"]["rebuild"]
    assert len(rebuild["seconds_by_round"]) == 3
    assert set(rebuild["ratios"]) == {"plain_store", "checkpoint"}
    assert rebuild["losses"] == result["arms"]["checkpoint"]["losses"]
    assert len(set(rebuild["losses"])) == 4  # another batch in every round


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (lambda: study_memory(WORKLOAD, Midpoint(), ["rebuild"], [4, 4]), "two different numbers of layers"),
        (lambda: study_memory(WORKLOAD, BlendedMidpoint([1, 1]), ["rebuild"], [2, 4]), "2 blends for a model of 4"),
        (lambda: study_memory(WORKLOAD, Residual(), ["rebuild"], [2, 4]), "residual have no inverse"),
        (lambda: study_time(WORKLOAD, Midpoint(), ["forget"], 1, 0), "no arm 'forget'"),
        (lambda: study_time(WORKLOAD, Midpoint(), ["rebuild"], 0, 0), "one round"),
    ],
)
def test_mistakes_are_named(study, message):
    with pytest.raises(ValueError, match=message):
        study()
