import ast
import importlib
import inspect
import json
import pkgutil
import re

import pytest

import lab.docs
from lab.docs import markdown, tables
from tests.docs.pages import PAGES, ROOT

MODULES = [
    importlib.import_module(f"lab.docs.{found.name}")
    for found in pkgutil.iter_modules(lab.docs.__path__)
    if found.name != "home"
]
FUNCTIONS = {
    (module.__name__.rpartition(".")[2], name): function
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
}


def written():
    """The calls on all pages and in the figure, with the text behind each."""
    text = "\n".join([*PAGES.values(), (ROOT / "docs/memory.svg").read_text(encoding="utf-8")])
    return re.findall(
        r"<!-- \[\[\[cog (\w+)\.(\w+)\((.*?)\)\]\]\] -->\n(.*?) *<!-- \[\[\[end\]\]\] -->", text, re.DOTALL
    )


@pytest.mark.parametrize(("module", "name", "arguments", "text"), written())
def test_the_figures_of_a_page_are_those_of_committed_results(module, name, arguments, text, capsys):
    FUNCTIONS[module, name](*(ast.literal_eval(f"({arguments},)") if arguments else ()))
    printed = capsys.readouterr().out
    assert [line.strip() for line in printed.strip().splitlines()] == [
        line.strip() for line in text.strip().splitlines()
    ]


def test_every_table_is_on_a_page():
    tables = {key for key, function in FUNCTIONS.items() if inspect.signature(function).return_annotation is None}
    assert {key for key in tables if key[0] != "markdown"} == {(module, name) for module, name, _, _ in written()} - {
        ("markdown", "code")
    }


def test_a_table_has_a_row_for_every_result(capsys):
    markdown.show("layers | peak", [(4, markdown.mebibytes(7 * 2**20)), (64, markdown.mebibytes(339 * 2**20))])
    assert capsys.readouterr().out == "\n| layers | peak |\n|---|---|\n| 4 | 7.0 MiB |\n| 64 | 339 MiB |\n\n"


def test_shares_have_their_spread():
    assert markdown.spread([0.01]) == "+1.00%"
    assert markdown.spread([0.01, 0.03]) == "+2.00% (+1.00% to +3.00%)"


def test_a_fault_shows_the_policies_under_which_something_else_happens():
    right = {"result": "right", "seen": "equal", "sentence": ""}
    row = {"result": "refused", "seen": "UserError", "sentence": "Why"}
    assert tables._elsewhere({**row, "policies": {"rebuild": row, "offload": {**row, "sentence": "Why not"}}}) == ""
    policies = {"rebuild": row, "offload": right, "checkpoint": right}
    assert tables._elsewhere({**row, "policies": policies}) == " Under `offload`, `checkpoint`: No harm: equal."


def ratio(median):
    return {"lower": median - 0.01, "median": median, "upper": median + 0.01}


def study(*points, **recipe):
    shape = {"batch_size": 1, "sequence_length": 1024, "precision": "bfloat16", "rounds": 3}
    config = {"num_hidden_layers": 24, "hidden_size": 128}
    return {"recipe": {**shape, "model": {"config": config}, **recipe}, "points": points}


def point(value, arm, peak, *seconds, **ratios):
    return {
        "value": value,
        "arm": arm,
        "memory": None,
        "fits": peak is not None,
        "peak": peak and peak * 2**20,
        "ratios": {name: ratio(median) for name, median in ratios.items()},
        "seconds_by_round": seconds,
    }


def test_budgets_are_shown_at_the_peaks_of_the_rivals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    tables.gpu_rivals()
    assert capsys.readouterr().out.strip() == "Not measured yet."
    arms = {"plain_checkpoint": 20, "plain_selective": 30, "plain_every:2": None}
    points = [point(value, arm, peak) for value in ("selective", "every:2") for arm, peak in arms.items()]
    points += [point("selective", "budget", 29, plain_selective=0.9), point("every:2", "budget", 29)]
    result = {**study(*points), "environment": {"accelerator": "Example"}}
    (tmp_path / "bench-gpu-rivals-1024.json").write_text(json.dumps(result))
    tables.gpu_rivals()
    shown = capsys.readouterr().out
    assert "Example:" in shown
    assert "24 layers, bfloat16, width 128, 1 x 1,024 tokens, 3 interleaved rounds:" in shown
    assert "| `plain_selective` | 30 MiB | - | - |" in shown
    assert "| `plain_every:2` | does not fit | - | - |" in shown
    assert "| `plain_selective` | 30 MiB | 29 MiB | 0.90 (0.89 to 0.91) |" in shown
    assert "| `plain_every:2` | - | none equal | - |" in shown


def test_formats_of_states_are_compared_within_a_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    points = [
        point(24, f"rebuild:{bits}:{states}", peak, *seconds)
        for bits, states, peak, *seconds in [
            (0, "int64", 100, 1.0, 2.0),
            (0, "int32", 60, 0.5, 1.0),
            (2, "int64", 110),
            (2, "int32", 66, 1.0, 2.0),
        ]
    ]
    (tmp_path / "bench-states-bfloat16.json").write_text(json.dumps(study(*points)))
    tables.states()
    shown = capsys.readouterr().out
    assert "| 24 | 0 | 100 MiB | 60 MiB | 0.60 | 0.50 (0.50 to 0.50) |" in shown
    assert "| 24 | 2 | 110 MiB | 66 MiB | 0.60 | - |" in shown
    assert "| 24 | int32 | 2.00 (2.00 to 2.00) |" in shown
