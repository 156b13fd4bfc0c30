"""Every command of the laboratory looks at the place of its result before the work, and replaces no directory."""

import contextlib
import runpy
import sys
from pathlib import Path

import pytest

from lab.__main__ import main
from lab.studies import conversion_loss

COMMANDS = {
    "evaluate": ["evaluate", "model", "--tasks", "local_piqa", "--data", "data", "--out", "PLACE"],
    "compare": ["compare", "recipe.yaml", "--out", "PLACE"],
    "report": ["report", "run", "--out", "PLACE"],
    "bench": ["bench", "depth", "recipe.yaml", "--out", "PLACE"],
    "plot of bench": ["bench", "depth", "recipe.yaml", "--out", "result.json", "--plot", "PLACE"],
}
STUDIES = [file.stem for file in Path(conversion_loss.__file__).parent.glob("*.py")]
STUDIES = [name for name in STUDIES if not name.endswith("_figures")]  # they write the figures of the pages
STUDIES.remove("real_model")
STUDIES.remove("__init__")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize("place", ["folder", "file/below.svg", "/proc/nowhere/result.svg"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_place_that_takes_nothing(name, place, workspace, capsys):
    if place == "folder" and name == "compare":  # writes into a folder
        place = "file"
    assert main([place if word == "PLACE" else word for word in COMMANDS[name]]) == 2
    errors = capsys.readouterr().err
    assert "Nothing can be written to" in errors or "is a directory; name a file in it" in errors
    assert errors.count("\n") == 1
    assert (workspace / "folder" / "precious").exists()


@pytest.mark.parametrize("name", ["lab.survey", "lab.fuzz", *(f"lab.studies.{name}" for name in STUDIES)])
def test_a_study_refuses_a_place_that_takes_nothing(name, workspace, monkeypatch, capsys):
    option = "--out" if name == "lab.fuzz" else "--output"
    monkeypatch.setattr(sys, "argv", [name, option, "folder"])
    with pytest.raises(SystemExit) as ended, contextlib.suppress(RuntimeWarning):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    shown = capsys.readouterr()
    assert "folder is a directory; name a file in it" in f"{shown.err}{ended.value}"
    assert (workspace / "folder" / "precious").exists()
