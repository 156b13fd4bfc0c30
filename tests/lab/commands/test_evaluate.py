import json

import pytest

import revformers as rf
from lab.__main__ import main
from tests.lab.evaluation.tiny import damaged, tiny_model, tiny_tokenizer, write_data


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_data(tmp_path / "data")
    reversible = rf.make_reversible(tiny_model(), rf.BlendedMidpoint("1/64"))
    for name, model in (("ordinary", tiny_model()), ("reversible", reversible), ("damaged", damaged(tiny_model()))):
        model.save_pretrained(name)
        tiny_tokenizer().save_pretrained(name)
    return tmp_path


def evaluate(model, *options):
    return main(["evaluate", model, "--tasks", "local_piqa", "local_wikitext", *options])


def test_a_model_is_evaluated_and_the_result_written(workspace, capfd):
    assert evaluate("reversible", "--data", "data", "--limit", "5", "--out", "result.json") == 0
    shown, errors = capfd.readouterr()
    assert "word_perplexity ↓" in shown
    assert "acc_norm ↑" in shown
    assert "it/s" not in errors
    assert "pretrained" not in errors
    result = json.loads((workspace / "result.json").read_text())
    accuracy = result["model"]["scores"][0]
    assert f"{accuracy['value']:.4f} ± {accuracy['standard_error']:.4f}" in shown
    assert (accuracy["task"], accuracy["metric"], accuracy["documents"]) == ("local_piqa", "acc", 5)
    assert result["command"].startswith("python -m lab evaluate reversible --tasks local_piqa")
    assert result["environment"]["revformers"]


def test_two_models_are_shown_side_by_side(workspace, capsys):
    assert evaluate("reversible", "--against", "ordinary", "--data", "data", "--out", "near.json") == 0
    original = str((workspace / "ordinary").resolve())
    assert evaluate("damaged", "--against", original, "--data", "data", "--out", "far.json") == 0
    shown = capsys.readouterr().out
    for words in ("local_wikitext ", "6 documents", "  word_perplexity ↓ ", "MODEL", "AGAINST", "difference"):
        assert words in shown
    assert "…" not in shown
    assert " *" in shown
    near, far = (json.loads((workspace / name).read_text())["differences"][-1] for name in ("near.json", "far.json"))
    assert near["metric"] == far["metric"] == "bits_per_byte"
    assert far["difference"]["marked"]
    assert 0 < abs(near["difference"]["value"]) < 0.1 * far["difference"]["value"]
    assert near["against"] == far["against"]
    # A result that is shared names no directory of the machine, in its command and elsewhere.
    assert json.loads((workspace / "far.json").read_text())["names"] == {"model": "damaged", "against": "ordinary"}


CHOICES = ["local_piqa", "local_arc_easy", "local_arc_challenge", "local_openbookqa", "local_winogrande"]


def test_the_mean_accuracy_over_the_tasks_is_shown(workspace, capsys):
    options = ["--data", "data", "--limit", "4", "--tasks", *CHOICES]
    assert main(["evaluate", "damaged", "--against", "ordinary", "--out", "two.json", *options]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    words = " ".join(shown.split())
    assert "mean 5 tasks acc ↑" in words
    assert "The mean gives every task the same weight, and its error assumes independent tasks." in words
    assert "acc_norm, else acc: acc_norm of tasks that have it, and acc of local_winogrande." in words
    assert "left out" not in words
    result = json.loads((workspace / "two.json").read_text())
    for difference, metric in zip(result["mean_differences"], ("acc", "acc_norm, else acc"), strict=True):
        assert (difference["metric"], list(difference["tasks"])) == (metric, CHOICES)
        cells = (difference, difference["against"], difference["difference"])
        values = [f"{cell['value']:.4f} ± {cell['standard_error']:.4f}" for cell in cells[:2]]
        values.append(f"{cells[2]['value']:+.4f} ± {cells[2]['standard_error']:.4f}")
        assert f"{metric} ↑ {' '.join(values)}" in words
    assert main(["evaluate", "damaged", "--out", "one.json", *options, "local_wikitext"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "local_wikitext has neither acc nor acc_norm and is left out." in words
    mean = json.loads((workspace / "one.json").read_text())["model"]["means"][1]
    assert f"acc_norm, else acc ↑ {mean['value']:.4f} ± {mean['standard_error']:.4f}" in words
    assert mean["value"] == result["mean_differences"][1]["value"]


def test_without_two_accuracies_there_is_no_mean(workspace, capsys):
    assert evaluate("ordinary", "--data", "data", "--limit", "2") == 0
    assert "mean" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ordinary", "--data", "nowhere"], "There is no data directory 'nowhere'"),
        (["ordinary"], "name their directory with data (--data)"),
        (["./nowhere", "--data", "data"], "There is no model './nowhere'"),
        (["ordinary", "--against", "./nowhere", "--data", "data"], "There is no model './nowhere'"),
        (["data", "--data", "data"], "data has no config.json, so it holds no whole model"),
        (["ordinary", "--data", "data", "--device", "nothing"], "PyTorch cannot use the device 'nothing'"),
    ],
)
def test_errors_are_one_sentence(arguments, message, workspace, capsys):
    assert evaluate(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_an_empty_list_of_tasks_is_refused(workspace, capsys):
    assert main(["evaluate", "ordinary", "--tasks"]) == 2
    assert "Name a task to evaluate" in capsys.readouterr().err
