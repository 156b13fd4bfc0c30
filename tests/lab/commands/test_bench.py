import json

import pytest
import yaml

from lab.__main__ import main
from lab.bench import study
from tests.lab.bench.example import MeasureHere

CONFIG = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "vocab_size": 16, "max_position_embeddings": 256}
RECIPE = {
    "model": {"config": CONFIG},
    "arms": ["plain_checkpoint", "rebuild", "budget"],
    "batch_size": 2,
    "sequence_length": 16,
    "depths": [12],
    "batch_sizes": [1],
    "sequence_lengths": [32],
    "budgets": ["checkpoint"],
    "rounds": 2,
    "warm_up_rounds": 0,
    "rounds_at_largest": 1,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "MeasuringProcess", MeasureHere)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "words", "shown"),
    [
        ("depth", ["--memory", "0.3MB", "--tolerance", "0.2"], ["layers", "largest batch size", "0.3MB"]),
        ("batch", ["--optimizer", "adamw", "--arms", "store", "rebuild:2"], ["rebuild:2", "samples/s"]),
        ("length", ["--precision", "bfloat16"], ["tokens/s", "bfloat16 on cpu"]),
        ("budget", [], ["budget", "over store"]),
    ],
)
def test_every_study(name, words, shown, here, capsys):
    command = ["bench", name, "tiny.yaml", *words, "--out", "result.json", "--plot", "plot.svg"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert all(text in first for text in [*shown, "Written to result.json", "Plotted in plot.svg"])
    result = json.loads((here / "result.json").read_text())
    assert result["finished"]
    assert result["command"].startswith(f"python -m lab bench {name} tiny.yaml")
    assert result["environment"]["torch"]
    for row in result["points"]:
        assert row["peak"] > 0
        assert row["samples_per_second"] > 0
    arms = {row["arm"]: row for row in result["points"] if row["memory"] is None}
    if name != "batch":
        assert arms["rebuild"]["losses"] == arms["budget"]["losses"] != arms["plain_checkpoint"]["losses"]
        assert arms["budget"]["peak"] <= arms["plain_checkpoint"]["peak"] or name == "budget"
    assert (here / "plot.svg").read_text().startswith("<?xml")
    # Called again it measures nothing, and shows the same.
    before = result["peaks"]
    assert main(command) == 0
    assert json.loads((here / "result.json").read_text())["peaks"] == before
    again = capsys.readouterr().out
    assert again in first


@pytest.mark.thorough
def test_the_result_has_a_place_of_its_own(here):
    assert main(["bench", "batch", "tiny.yaml", "--arms", "rebuild", "--rounds", "0"]) == 0
    path = here / "lab/results/batch-tiny.json"
    assert "seconds" not in json.loads(path.read_text())["points"][0]
    assert main(["bench", "batch", "tiny.yaml", "--arms", "rebuild", "--rounds", "1"]) == 2
    assert main(["bench", "batch", "tiny.yaml", "--arms", "rebuild", "--rounds", "1", "--overwrite"]) == 0
    assert "seconds" in json.loads(path.read_text())["points"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a study first"),
        (["width", "tiny.yaml"], "Name a study first, one of depth, batch, length, budget, not 'width'"),
        (["depth"], "Name a recipe, as in: python -m lab bench depth"),
        (["depth", "other.yaml"], "There is no recipe 'other.yaml'"),
        (["depth", "tiny.yaml", "--plot", "plot.txt"], "--plot takes a file that ends in"),
        (["depth", "tiny.yaml", "--layers", "4"], "has no 'layers'"),
        (["depth", "tiny.yaml", "--depths", "many"], "'depths' takes a list of whole numbers, not 'many'"),
        (["depth", "tiny.yaml", "--depths", "0"], "depths must be whole numbers of at least 1"),
        (["depth", "tiny.yaml", "--depths", "2", "2"], "depths must be different from each other, not 2, 2"),
        (["depth", "tiny.yaml", "--rounds", "-1"], "rounds must be at least 0, not -1"),
        (["depth", "tiny.yaml", "--arms", "forget"], "arms: There is no arm 'forget'"),
        (["depth", "tiny.yaml", "--arms", "budget"], "add that arm, or give a size, as in budget:2GiB"),
        (["depth", "tiny.yaml", "--arms", "plain_offload"], "needs a GPU: on a CPU there is nowhere to offload to"),
        (["depth", "tiny.yaml", "--memory", "much"], "memory takes sizes such as 24GiB or the word free, not 'much'"),
        (
            ["budget", "tiny.yaml", "--budgets", "every:3"],
            "needs the arm plain_every:3, whose peak sets it; add that arm",
        ),
        (["budget", "tiny.yaml", "--budgets", "much"], "budgets takes sizes such as 24GiB or what follows plain_ in"),
        (["depth", "tiny.yaml", "--precision", "float8"], "'precision' takes one of float32"),
        (["depth", "tiny.yaml", "--device", "nonsense"], "cannot use the device 'nonsense'"),
        (["depth", "tiny.yaml", "--model.architecture", "lama"], "did you mean 'llama'?"),
        (["depth", "tiny.yaml", "--model.config.width", "3"], "model.config of a llama has no 'width'"),
        (["depth", "tiny.yaml", "--dynamics.name", "euler"], "no dynamics called 'euler'"),
        (["depth", "tiny.yaml", "--dynamics.name", "residual"], "have no inverse; leave out the arm rebuild"),
        (["length", "tiny.yaml", "--sequence_lengths", "512"], "longer than the 256 that the model reads"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(words, message, capsys, here):
    assert main(["bench", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["tiny.yaml"]


def test_the_help_shows_the_options_of_a_study(capsys):
    assert main(["bench", "depth", "tiny.yaml", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: python -m lab bench depth tiny.yaml" in shown
    assert all(option in shown for option in ("--out", "--plot", "--depths", "--model.config", "--memory"))
