import json

import pytest

from lab.__main__ import main
from lab.bench import comparison, process
from tests.lab.bench.example import measure_here
from tests.training.tiny import write_recipe

SHORT = ["--dynamics_steps", "2", "--arm_steps", "2", "--depths", "2", "3"]


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(process, "measure_peak_memory", measure_here)


@pytest.mark.thorough
def test_it_shows_and_saves_the_comparison(tmp_path, one_process, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)
    assert main(["compare", str(recipe), "--out", "out", *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "Every dynamics, 2 steps" in shown
    assert "Written to out/comparison.json." in shown
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["command"] == "python -m lab compare tiny.yaml --out out " + " ".join(SHORT)
    assert saved["recipe_file"] == "tiny.yaml"
    assert saved["environment"]["torch"]


@pytest.mark.thorough
def test_gradients_that_are_not_exact_have_exit_code_1(tmp_path, one_process, monkeypatch):
    import dataclasses

    exact = comparison.verify_gradients
    monkeypatch.setattr(
        comparison, "verify_gradients", lambda model, batch: dataclasses.replace(exact(model, batch), bit_exact=False)
    )
    assert main(["compare", str(write_recipe(tmp_path)), "--out", str(tmp_path / "out"), *SHORT]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arm_steps", "1"], "at least 2 steps"),
        (["--depths", "4"], "two different numbers of layers"),
        (["--device", "nonsense"], "cannot use the device 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, options, message, capsys):
    assert main(["compare", str(write_recipe(tmp_path)), *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_missing_recipe_is_named(capsys):
    assert main(["compare", "nowhere.yaml"]) == 2
    assert "There is no recipe 'nowhere.yaml'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_way_from_a_recipe_to_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(write_recipe(tmp_path))
    assert main(["pretrain", recipe, "--output", "run", "--sample.prompts", "the", "--sample.max_new_tokens", "8"]) == 0
    assert main(["compare", recipe, "--out", "run", *SHORT]) == 0
    assert main(["report", "run"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Not measured" not in page
    assert page.count("<svg") == 4
