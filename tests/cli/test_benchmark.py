import json

import pytest

from revformers.benchmark import depth
from revformers.cli.main import main
from tests.benchmark.example import measure_here

SMALL = ["--width", "32", "--vocabulary", "16", "--batch_size", "2", "--sequence_length", "32"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(depth, "measure_peak_memory", measure_here)
    return tmp_path


def test_memory(here, capsys):
    dynamics = ["--dynamics", "blended_midpoint", "--dynamics_options", "{blend: 1/4}"]
    assert main(["benchmark", "memory", "--layers", "2", "4", *SMALL, *dynamics]) == 0
    shown = capsys.readouterr().out
    assert "Growth of the peak per added layer" in shown
    path = here / "benchmarks" / "results" / "memory-blended_midpoint-float32.json"
    result = json.loads(path.read_text())
    assert result["study"] == "memory"
    assert result["command"].startswith("revformers benchmark memory --layers 2 4")
    assert {row["arm"] for row in result["points"]} == {"plain_store", "plain_checkpoint", "checkpoint", "rebuild"}


def test_time(here, capsys):
    words = ["--layers", "2", "--rounds", "2", "--warm_up_rounds", "1", "--precision", "bfloat16", "--out", "t.json"]
    assert main(["benchmark", "time", "--arms", "checkpoint", "rebuild", *words, *SMALL]) == 0
    assert "rebuild over" in capsys.readouterr().out
    result = json.loads((here / "t.json").read_text())
    assert result["precision"] == "bfloat16"
    assert set(result["arms"]) == {"checkpoint", "rebuild"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["time", "--dynamics", "euler"], "no dynamics called 'euler'"),
        (["time", "--dynamics_options", "3"], "takes YAML such as"),
        (["time", "--dynamics_options", "{"], "takes YAML such as"),
        (["time", "--layers", "0"], "layers of at least 1"),
        (["time", "--rounds", "0", "--layers", "1", *SMALL], "at least one arm and one round"),
        (["memory", "--layers", "4"], "two different numbers of layers"),
        (["memory", "--dynamics", "residual"], "no inverse"),
        (["memory", "--width", "30", "--heads", "4"], "width of 30"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
