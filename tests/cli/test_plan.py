import json

import pytest
from transformers import LlamaConfig

from revformers.cli.main import main
from revformers.cli.plan import parse_memory


@pytest.fixture
def config(tmp_path):
    LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.thorough
def test_a_table_and_a_file(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "rebuild" in shown
    plan = json.loads(out.read_text())
    assert [row["name"] for row in plan["setups"]] == ["store", "checkpoint", "offload", "rebuild"]
    assert plan["recommendation"] in shown


@pytest.mark.thorough
def test_a_plan_for_scripts_is_nothing_but_json(config, capsys):
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "16", "--bits", "1", "--train", "qlora"]
    assert main([*words, "--optimizer", "adamw8bit", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["setups"][-1]["bits"] == 1
    assert plan["setups"][0]["memory"]["weights"] == plan["size"]["weights"]


@pytest.mark.thorough
def test_slow_memory_makes_what_moves_bytes_slower(config, tmp_path):
    times = []
    for ratio in ("1", "1000"):
        out = tmp_path / f"{ratio}.json"
        words = ["plan", config, "--memory", "8MB", "--sequence_length", "16", "--bits", "3", "--json", str(out)]
        assert main([*words, "--operations_per_byte", ratio]) == 0
        times.append(json.loads(out.read_text())["setups"][-1]["time"])
    assert times[0] < times[1]


@pytest.mark.thorough
def test_a_plot_has_a_curve_a_way(config, tmp_path):
    file = tmp_path / "plan.svg"
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--plot", str(file)]
    assert main([*words, "--plot_axis", "batch"]) == 0
    drawn = file.read_text()
    assert drawn.count('id="rebuild, 0 bits"') == 1
    assert "sequences of 64 tokens" in drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "much"], "such as 24GiB"),
        (["--memory", "1GiB", "--bits", "9"], "from 0 to 8"),
        (["--memory", "1GiB", "--sequence_length", "1"], "two tokens"),
        (["--memory", "1GiB", "--operations_per_byte", "0"], "a positive number"),
        (["--memory", "1GiB", "--plot", "plan.txt", "--sequence_length", "16"], "No plot can be written to plan.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(config, options, message, capsys):
    assert main(["plan", config, *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_a_missing_model_is_named(capsys):
    assert main(["plan", "./nowhere", "--memory", "1GiB"]) == 2
    assert "There is no directory './nowhere'" in capsys.readouterr().err


def test_sizes():
    assert [parse_memory(text) for text in ("24GiB", "80 GB", "1.5mib")] == [24 * 2**30, 80 * 10**9, 3 * 2**19]


@pytest.mark.thorough
def test_small_memories_are_in_mebibytes_and_no_number_is_cut(config, capsys):
    assert main(["plan", config, "--memory", "900MiB", "--sequence_length", "64", "--bits", "0"]) == 0
    shown = capsys.readouterr().out
    assert "of 900 MiB" in shown
    assert "MiB, one sequence of 64 tokens" in shown
    assert "…" not in shown
