"""What every command offers, prints and writes. `golden_file` says how to write the files in commands/ anew.

Of the help only the names of the options are pinned, as its prose is free to change. What a run prints is pinned
without times, and what it writes by the names of the files and by the keys of the results. On another machine than the
one in the first line of a golden file, numbers are not compared.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import revformers as rf
from lab.__main__ import COMMANDS as LABORATORY
from lab.__main__ import main as laboratory
from revformers.cli import main as library
from tests.golden.golden_file import HERE, WRITES, fingerprint
from tests.golden.workspace import write_workspace

DIRECTORY = HERE / "commands"

PRETRAIN = "pretrain pretrain.yaml --output run --sample.prompts the --sample.max_new_tokens 4"
CONVERT = "convert model --calibration text.txt --out converted --length 32 --bits 1 --sequences 8 --held_out 4"
RUNS = {
    "run": ["run tool.py --steps 1"],
    "pretrain": [PRETRAIN],
    "verify": ["verify model --dynamics leapfrog --length 16"],
    "convert": [CONVERT],
    "finetune": ["finetune finetune.yaml --output tuned"],
    "evaluate": [
        CONVERT,
        "evaluate converted --against model --tasks local_piqa --data data --limit 4 --out evaluation.json",
    ],
    "analyze": ["analyze model --length 4 --layers 0 --dynamics midpoint --json analysis.json"],
    "plan": ["plan model --memory 4MB --sequence_length 64 --bits 0 --json plan.json"],
    "compare": ["compare pretrain.yaml --out run --dynamics_steps 2 --arm_steps 2 --depths 2 3"],
    "report": [PRETRAIN, "report run --out page.html"],
    "bench": ["bench depth bench.yaml --out bench.json"],
}
"""By command: the lines to run, of which the last one is pinned."""

SLOW = ("plan", "compare", "bench")
"""The runs that take many seconds."""

RESULTS = ("metrics", "history", "comparison", "conversion", "evaluation", "bench", "plan", "start", "reversible")
"""Names of the JSON files whose keys are pinned."""

TIMES = [
    (r"[\d,.]+ tokens/s", "<speed> tokens/s"),
    (r"\d+:\d\d:\d\d left", "<time> left"),
    (r"\bin [\d,.]+ s\b", "in <time> s"),
    (r"\d+\.\d+ \(\d+\.\d+ to \d+\.\d+\)", "<ratio>"),
    (r"\b[\d,.]+ m?s [\d,.]+ ", "<time> <speed> "),  # the columns step and samples/s of bench
    (r"\b[\d,.]+ m?s ", "<time> "),
    (r"(?m)( (?:yes|no|-)) \d+\.\d\d$", r"\1 <ratio>"),  # the column time of compare
]
THROTTLED = re.compile(r"(?m)^layer \d+/\d+ .*\n")
"""Lines that appear once every so many seconds."""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A directory to run in, alike for every test; one thread, and no word wrapped."""
    monkeypatch.chdir(write_workspace(tmp_path))
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Measuring processes shall import the package that is tested here, also where PYTHONPATH was relative.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(str(Path(rf.__file__).resolve().parents[above]) for above in (1, 2))
    )
    monkeypatch.setattr("sys.argv", ["revformers"])  # `run` changes it, and sys.path
    monkeypatch.setattr("sys.path", list(sys.path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def check(name, found):
    """Compare `found` with the golden file of this name, which begins with the machine that it was written on."""
    path = DIRECTORY / f"{name}.txt"
    if WRITES:
        path.write_text(f"{json.dumps(fingerprint())}\n{found}")
    machine, _, expected = path.read_text().partition("\n")
    if json.loads(machine) == fingerprint():
        assert found == expected
    else:
        assert without_numbers(found) == without_numbers(expected)


def without_numbers(text):
    """Take out what another processor may change: numbers, and text that a model wrote."""
    text = re.sub(r"(?s)(sample\.txt ─\n).*?(\nModel:)", r"\1<sample>\2", text)
    return re.sub(r"[-+]?\d[\d,.]*", "<number>", text)


def normalised(text, directory):
    """Take out times, what hangs on them, paths of this machine, and the widths of columns."""
    text = THROTTLED.sub("", text.replace(str(directory), "<directory>"))
    lines = (re.sub(r"([─━])[─━]+", r"\1", " ".join(line.split())) for line in text.splitlines())
    text = "".join(f"{line}\n" for line in lines)
    for pattern, replacement in TIMES:
        text = re.sub(pattern, replacement, text)
    return text


def main(words):
    """Run a command, of the library or of the laboratory."""
    return laboratory(words) if words[0] in LABORATORY else library.main(words)


def program(command):
    """Return how the program with a command is called."""
    return "python -m lab" if command in LABORATORY else "revformers"


def files_below(directory):
    """Return the files and when they were written; caches are not what a command is called for."""
    files = (path for path in directory.rglob("*") if path.is_file() and "cache" not in path.parts[:-1])
    return {path.relative_to(directory).as_posix(): path.stat().st_mtime_ns for path in files}


def keys(value, above=""):
    """Return the paths to everything in a value of JSON; the items of a list share theirs."""
    if isinstance(value, dict):
        return {path for name, item in value.items() for path in keys(item, f"{above}.{name}" if above else name)}
    if isinstance(value, list):
        return {path for item in value for path in keys(item, f"{above}[]")} or {f"{above}[]"}
    return {above}


def content(path):
    """Return lines on a file that was written: the keys of a result, the elements of a page."""
    if path.suffix == ".json" and path.stem in RESULTS:
        return [f"    {key}" for key in sorted(keys(json.loads(path.read_text())))]
    if path.suffix == ".html":
        page = path.read_text()
        return [f"    {tag} {len(re.findall(f'<{tag}[ >]', page))}" for tag in ("h1", "h2", "table", "tr", "svg")]
    return []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name in SLOW else name for name in RUNS]
)
def test_a_run_prints_and_writes_what_it_did(name, workspace, capsys):
    *before, line = (line.split() for line in RUNS[name])
    assert all(main(words) == 0 for words in before)
    there = files_below(workspace)
    capsys.readouterr()
    code = main(line)
    shown = normalised(capsys.readouterr().out, workspace)
    written = sorted(file for file, time in files_below(workspace).items() if there.get(file) != time)
    files = [text for file in written for text in (f"  {file}", *content(workspace / file))]
    check(
        name, "\n".join([f"{program(name)} {' '.join(line)}", f"exit code {code}", "files:", *files, "output:", shown])
    )


def options(help_text):
    """Return the names of the options that a help defines, which begin a line; descriptions are indented further."""
    defined = re.findall(r"(?m)^[│ ]{1,3}((?:--?[\w.-]+)(?:(?:, | \| |\|)--?[\w.-]+)*)", help_text)
    return sorted({option for definition in defined for option in re.findall(r"--\w[\w.-]*", definition)})


def test_every_command_has_the_options_that_it_had(workspace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # wide helps have two columns
    assert library.main(["--help"]) == 0
    assert laboratory(["--help"]) == 0
    commands = re.findall(r"(?m)^  ([a-z]+)  +\S", capsys.readouterr().out)
    assert sorted(commands) == sorted(RUNS)
    lines = []
    for command in sorted(commands):
        for words in ([command, "depth"], [command]) if command == "bench" else ([command],):
            assert main([*words, "--help"]) == 0
            lines += [" ".join(words), *(f"  {option}" for option in options(capsys.readouterr().out))]
    check("options", "\n".join(lines) + "\n")


def test_what_hangs_on_time_is_taken_out_and_figures_are_not():
    def line(seconds, loss):
        return f"layer 1/8 about {seconds} left\nFinished in {seconds} s: loss {loss}, {seconds} tokens/s.\n"

    assert normalised(line("1.5", "5.7"), "/here") == normalised(line("20.25", "5.7"), "/here")
    assert normalised(line("1.5", "5.7"), "/here") != normalised(line("1.5", "5.8"), "/here")
    assert without_numbers(line("1.5", "5.7")) == without_numbers(line("1.5", "5.8"))


def test_an_option_that_is_mentioned_is_not_one_that_is_there():
    shown = "usage: x [-h] [--out PATH]\n│ --out PATH, as --other gives it │\n│ --fast, --no-fast  (sets --other) │\n"
    assert options(shown) == ["--fast", "--no-fast", "--out"]
