import dataclasses
import json
import sys

import pytest
import yaml

from lab import REPOSITORY
from lab.studies import paper_tables
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.prediction import predict

RESULT = REPOSITORY / "lab/results/paper-tables.json"
TINY = paper_tables.Case(
    3,
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 6, "n_head": 2, "n_positions": 64, "vocab_size": 300},
    64,
    "chunked",
    ("4MB", "16MB"),
)


def test_the_committed_result_has_the_networks_of_the_recipes():
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    expected = [(case.table, case.config["n_layer"], case.head, list(case.memory)) for case in paper_tables.cases()]
    assert [(row["table"], row["layers"], row["head"], list(row["largest_batch"]["store"])) for row in rows] == expected
    depths = yaml.safe_load((REPOSITORY / "recipes/bench/table4.yaml").read_text())["depths"]
    assert [row["layers"] for row in rows if row["table"] == 4 and row["head"] == "own"] == depths


@pytest.mark.thorough
def test_the_largest_batch_fits_and_one_more_does_not():
    """`predict` counts the whole memory of one batch, without a search."""
    workload, memory = TINY.workload(), 16_000_000
    for way in paper_tables.WAYS.values():
        batch = paper_tables.largest_batch(workload, way, memory)
        assert batch > 1
        fits, does_not = (
            predict(dataclasses.replace(workload, batch_size=number), way, Machine(DEVICES["h100"], memory)).memory
            for number in (batch, batch + 1)
        )
        assert fits.total <= memory < does_not.total


@pytest.mark.thorough
def test_a_tiny_study_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_tables, "cases", lambda: iter([TINY]))
    monkeypatch.setattr(sys, "argv", ["paper_tables", "--output", str(tmp_path / "result.json")])
    paper_tables.main()
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    batches = {name: list(found.values()) for name, found in row["largest_batch"].items()}
    assert all(small < large for small, large in batches.values())
    assert batches["store"][1] < batches["checkpoint"][1]
    assert batches["store"][1] < batches["rebuild"][1]
    assert row["time_over_store"]["store"] == 1 < row["time_over_store"]["checkpoint"]
