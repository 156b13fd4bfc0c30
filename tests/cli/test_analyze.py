import json

import pytest

from revformers import Hamiltonian, make_reversible
from revformers.cli.main import main
from revformers.data.tokenizer import train_tokenizer
from tests.cli.test_verify import llama

TEXT = "a text of a few words, and of a few more words. " * 20


@pytest.fixture
def ordinary(tmp_path):
    model = llama()
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "ordinary")
    train_tokenizer([TEXT], 300).save_pretrained(tmp_path / "ordinary")
    return str(tmp_path / "ordinary")


def test_an_ordinary_model(ordinary, tmp_path, capsys):
    plots, file = tmp_path / "plots", tmp_path / "figures.json"
    options = ["--length", "3", "--layers", "1", "--json", str(file), "--plot", str(plots)]
    assert main(["analyze", ordinary, *options]) == 0
    shown = capsys.readouterr().out
    values = json.loads(file.read_text())
    assert [one["name"] for one in values["dynamics"]][1:3] == ["midpoint", "leapfrog"]
    assert " ".join(values["verdict"].split()) in " ".join(shown.split())
    assert "hamiltonian" in shown
    assert "3 tokens, random ones of seed 0." in shown
    names = {"eigenvalues", "growth-forwards", "growth-inverse", "reversal", "energy"}
    assert {one.name for one in plots.iterdir()} == {f"{name}.svg" for name in names}


def test_text_and_dynamics_may_be_given(ordinary, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    options = ["--text", str(tmp_path / "text.txt"), "--length", "4", "--layers", "0", "--json", "-"]
    assert main(["analyze", ordinary, *options, "--dynamics", "blended_midpoint:blend=1/4", "midpoint"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [one["recurrence"] for one in values["dynamics"]] == [
        "p[l+1] = 1/4 p[l-1] + 3/4 p[l] + f(p[l])",
        "p[l+1] = p[l-1] + f(p[l])",
    ]
    assert values["tokens"] == 4


def test_without_eigenvalues(ordinary, capsys):
    assert main(["analyze", ordinary, "--no-eigenvalues", "--length", "2"]) == 0
    shown = capsys.readouterr().out
    assert "eigenvalues" not in shown
    assert "growth of a perturbation" in shown


def test_dynamics_of_one_name_are_told_apart(ordinary, tmp_path, capsys):
    dynamics = ["midpoint", "midpoint:step_size=1.0", "midpoint", "leapfrog"]
    options = ["--no-eigenvalues", "--length", "2", "--plot", str(tmp_path), "--dynamics", *dynamics]
    assert main(["analyze", ordinary, *options]) == 0
    shown = capsys.readouterr().out
    assert shown.count("midpoint:step_size=1.0") == 1
    assert shown.count("leapfrog") == 1
    assert "midpoint:step_size=1.0" in (tmp_path / "energy.svg").read_text()


def test_a_reversible_model(tmp_path, capsys):
    make_reversible(llama(), Hamiltonian()).save_pretrained(tmp_path / "reversible")
    assert main(["analyze", str(tmp_path / "reversible"), "--length", "2", "--layers", "0"]) == 0
    assert "residual" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dynamics", "euler"], "no dynamics called 'euler'"),
        (["--layers", "7", "--length", "2"], "no layer 7"),
        (["--layers", "0", "--no_eigenvalues"], "give one of both"),
        (["--seed", "-1"], "--seed must be"),
        (["--length", "41"], "at most 40"),
        (["--length", "0"], "at least 1 token"),
        (["--plot", "/dev/null"], "is a file; name a directory"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--device", "nonsense"], "cannot use the device 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(ordinary, options, message, capsys):
    assert main(["analyze", ordinary, *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_tokenizer_of_another_model(ordinary, tmp_path, capsys):
    llama().save_pretrained(ordinary)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["analyze", ordinary, "--text", str(tmp_path / "text.txt"), "--length", "4"]) == 2
    assert "its tokenizer" in capsys.readouterr().err


def test_a_text_that_is_too_short(ordinary, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("few words")
    assert main(["analyze", ordinary, "--text", str(tmp_path / "text.txt"), "--length", "40"]) == 2
    assert "fewer than --length 40" in capsys.readouterr().err
