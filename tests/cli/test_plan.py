import json

import pytest
from transformers import LlamaConfig

from revformers.cli.main import main
from revformers.cli.plan import parse_memory


@pytest.fixture
def config(tmp_path):
    LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=2
    ).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_table_and_a_file(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "rebuild" in shown
    plan = json.loads(out.read_text())
    assert [way["name"] for way in plan["ways"]] == ["store", "checkpoint", "offload", "rebuild"]
    assert plan["recommendation"] in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "much"], "such as 24GiB"),
        (["--memory", "1GiB", "--bits", "9"], "from 0 to 8"),
        (["--memory", "1GiB", "--sequence_length", "1"], "two tokens"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(config, options, message, capsys):
    assert main(["plan", config, *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_missing_model_is_named(capsys):
    assert main(["plan", "./nowhere", "--memory", "1GiB"]) == 2
    assert "There is no directory or file" in capsys.readouterr().err


def test_sizes():
    assert [parse_memory(text) for text in ("24GiB", "80 GB", "1.5mib")] == [24 * 2**30, 80 * 10**9, 3 * 2**19]
