import argparse
import importlib
import inspect
import json
import re
import shlex
import sys
from itertools import pairwise

import pytest
import tyro

from lab.__main__ import COMMANDS as LAB_COMMANDS
from lab.commands import bench
from lab.docs import markdown, reproduction
from lab.docs.many_to_one import Comparison
from lab.fuzz.__main__ import Arguments
from lab.studies import pretraining
from revformers.cli.main import COMMANDS
from revformers.errors import UserError
from tests.docs.pages import PAGES, ROOT

PAGE = PAGES["docs/science/reproduction.md"]
ON_THE_PAGE = sorted({*re.findall(r"[`(]((?:python -m|revformers|make) [^`()]+)[`)]", PAGE)})
OF_RESULTS = dict(reproduction.commands_of_results())
READING = ("--calibration", "--training", "--validation", "--text", "--instructions", "--other-text", "--data")
READING += ("--against", "--models", "--fresh", "--run.data.source", "--run.data.validation_source")
"""Options whose words are models, texts and questions; --instructions is also a switch."""


class ReadError(Exception):
    """A program has read its options, and would begin its work."""


def stopped(read):
    """Return a function that reads options as `read` does, and then stops the program."""

    def reader(*arguments, **options):
        read(*arguments, **options)
        raise ReadError

    return reader


def stop(*arguments, **options):
    raise ReadError


@pytest.fixture
def read(monkeypatch):
    """Read the options of a command by the program's own parser; an option that it does not know ends the test."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(pretraining, "run_study", stop)
    monkeypatch.setattr("lab.bench.study_file.StudyFile", stop)

    def read(command):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        elif words[:3] == ["python", "-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[3:]), command
        elif words[:3] == ["python", "-m", "lab.fuzz"]:
            tyro.cli(Arguments, args=words[3:])
        elif words[-1] == "--help":
            with pytest.raises(SystemExit, match="0"):
                run(words, monkeypatch)
        else:
            with pytest.raises(ReadError):
                run(words, monkeypatch)

    return read


def run(words, monkeypatch):
    """Run a program until it has read its options."""
    commands, rest = (COMMANDS, words[1:]) if words[0] == "revformers" else (LAB_COMMANDS, words[3:])
    if words[0] == "revformers" or words[2] == "lab":
        module = importlib.import_module(commands[rest[0]][0])
        for reader in ("read_options", "read_command"):
            if hasattr(module, reader):
                monkeypatch.setattr(module, reader, stopped(getattr(module, reader)))
        module.run(rest[1:])
    name = words[2]
    if (ROOT / name.replace(".", "/")).is_dir():
        name += ".__main__"
    main = importlib.import_module(name).main
    monkeypatch.setattr(sys, "argv", words[2:])
    main(words[3:]) if inspect.signature(main).parameters else main()


@pytest.mark.parametrize("command", [*ON_THE_PAGE, *OF_RESULTS.values()])
def test_the_programs_know_the_options_of_the_commands(command, read):
    read(command)


@pytest.mark.parametrize(
    "command",
    [
        "python -m lab.studies.deployment model --instructions records.json --output result.json",
        "python -m lab.studies.pretraining recipes/pretraining/wikitext-10m.yaml --output result.json",
        "python -m lab.studies.faults",
        "python -m lab.fuzz",
        "python -m lab bench depth recipes/bench/cpu-table4.yaml",
        "python -m lab compare recipes/quickstart.yaml",
        "python -m lab evaluate model --tasks local_piqa",
        "revformers convert model --calibration text.txt --out converted",
        "revformers pretrain recipes/quickstart.yaml",
    ],
)
def test_an_option_that_does_not_exist_is_found(command, read):
    read(command)
    with pytest.raises((SystemExit, UserError)) as refused:
        read(f"{command} --no_such_option 1")
    assert refused.type is UserError or refused.value.code


def test_a_program_or_target_that_does_not_exist_is_found(read):
    with pytest.raises(KeyError):
        read("revformers forget pretrained")
    with pytest.raises(ModuleNotFoundError):
        read("python -m lab.studies.forgetting --output forgetting.json")
    with pytest.raises(AssertionError):
        read("make no-such-target")


@pytest.mark.parametrize("command", [*ON_THE_PAGE, *OF_RESULTS.values()])
def test_files_of_the_repository_that_a_command_names_exist(command):
    files = [word for word in shlex.split(command) if word.startswith(("recipes/", "tests/", "lab/"))]
    assert [file for file in files if not (ROOT / file).exists()] == []


def written(command):
    """The words after the options of a command that write."""
    words = shlex.split(command)
    return [after for before, after in pairwise(words) if before in reproduction.OUTPUTS]


@pytest.mark.parametrize("name", OF_RESULTS)
def test_no_command_writes_over_a_committed_result(name):
    places = written(OF_RESULTS[name])
    assert places, "a command of a result writes one"
    assert not [place for place in places if (ROOT / place).exists() or place.startswith("lab/")]
    assert "--overwrite" not in OF_RESULTS[name]


def test_a_study_of_the_bench_would_be_written_among_the_results_if_no_file_were_named():
    """That is why the test above asks for one."""
    assert "lab/results/STUDY-RECIPE.json" in bench.BenchOptions.__doc__


def inputs_named(command):
    """The words of a command that are models, texts or questions, whether the page has them or not."""
    words, option, found = shlex.split(command), None, []
    positional = words[3:] if words[2] in ("lab.studies.conversion_loss", "lab.studies.lora_step") else []
    for word in words[3:]:
        if word.startswith("--"):
            option = word
        elif option in READING:
            found.append(word)
    for word in positional:
        if word.startswith("--"):
            break
        found.append(word)
    if words[2:4] == ["lab", "evaluate"]:
        found.append(words[4])
    return found


@pytest.mark.parametrize("name", OF_RESULTS)
def test_the_page_says_how_to_get_what_a_command_reads(name):
    assert set(reproduction.read_by(OF_RESULTS[name])) >= {
        word.split("/")[0] for word in inputs_named(OF_RESULTS[name])
    }


def test_an_input_that_the_page_does_not_have_is_found():
    command = "python -m lab.studies.conversion_loss another --calibration train.txt --output another.json"
    assert set(inputs_named(command)) == {"another", "train.txt"}
    assert reproduction.read_by(command) == ["train.txt"]


def test_what_a_command_writes_is_not_read_by_it():
    assert reproduction.read_by("python -m lab x train.txt --keep kept --output valid.txt") == ["train.txt"]


def test_every_input_that_is_made_is_made_by_a_command_that_writes_it():
    for name in ("converted-2", "converted-4", "stories-train.txt", "SmolLM2-135M-Instruct"):
        (making,) = (one["making"] for one in reproduction.INPUTS if name in one["names"])
        assert f"--out {name}`" in making or f"--output {name}`" in making or f" {name}`" in making
    kept = next(command for name, command in OF_RESULTS.items() if name == "healing-smollm2-0-bits-update")
    assert "--keep kept" in kept
    assert "--arms '0 bits, update'" in kept
    assert "'kept/0 bits, update, seed 0'" in OF_RESULTS["accuracy-smollm2-0-bits-healed"]


def test_results_of_models_that_are_not_public_are_named(capsys):
    reproduction.irreproducible()
    not_public, alike = capsys.readouterr().out.strip().split("\n\n")
    for name in ("conversion-wikitext-12L", "reversal", "stability"):
        assert f"`{name}`" in not_public
        assert f"`{name}`" not in alike
    assert "`fuzz`" not in not_public + alike
    assert "`lora-step-smollm2`" in alike


def test_inputs_say_whether_they_are_public():
    kinds = {reproduction.availability(one, name) for one in reproduction.INPUTS for name in one["names"]}
    assert kinds == {"public", "alike", "not public", "your own"}
    assert all(one["origin"].startswith("https://") for one in reproduction.INPUTS if "origin" in one)


def test_an_old_command_is_named_as_it_is_called_today():
    """The results of the first months recorded names that the laboratory no longer has."""
    assert OF_RESULTS.keys() == {file.stem for file in markdown.RESULTS.glob("*.json")}
    old = [name for name in OF_RESULTS if "benchmarks/" in markdown.result(name)["command"]]
    assert old, "nothing would be tested"
    assert not [name for name in old if "benchmarks" in OF_RESULTS[name]]


def test_every_figure_of_others_says_where_it_was_read():
    sources = reproduction.PAPER["sources"]
    assert sources.keys() >= {
        part["source"] for part in reproduction.PAPER.values() if isinstance(part, dict) and "source" in part
    }
    assert [name for name, address in sources.items() if not address.startswith("https://")] == []
    for one in reproduction.PAPER["reproductions"]:
        assert one["repository"].count("/") == 1
        assert re.fullmatch("[0-9a-f]{40}", one["commit"]), "a file that cannot change"


def test_larger_batches_are_those_that_the_losses_and_speeds_belong_to():
    for one in reproduction.PAPER["reproductions"]:
        larger = one["larger_batch"]
        assert larger["loss"][0] == one["loss"][larger["network"]]
        assert larger["batch"][0] < larger["batch"][1] <= one["largest_batch"][1]
        assert larger["tokens_per_second"].keys() == {"residual", "small", "large"}


def test_losses_of_others_are_counted(monkeypatch, capsys):
    some = [
        {"repository": "a/b", "loss": {"residual": 2.0, "midpoint": 1.9, "leapfrog": 2.1}},
        {"repository": "c/d", "loss": {"residual": 2.0, "midpoint": 2.1}, "loss_of_another_seed": {"residual": 2.05}},
        {"repository": "e/f", "loss": {"residual": 2.0, "other_midpoint": 1.0, "hamiltonian": 2.5}},
    ]
    monkeypatch.setitem(reproduction.PAPER, "reproductions", some)
    reproduction.compared_losses()
    counts, seeds = capsys.readouterr().out.splitlines()
    assert counts.endswith("with midpoint in 1 of 2, leapfrog in 0 of 1, Hamiltonian in 0 of 1.")
    assert seeds == "With two seeds, c found 2.000 and 2.050 (ordinary)."


def test_differences_of_others_are_told_from_those_of_seeds(monkeypatch, capsys):
    some = [{"loss": {"residual": 2.0, "midpoint": loss}} for loss in (1.9, 2.05, 2.5)]
    some += [{"loss": {"residual": 2.0, "leapfrog": 2.1, "hamiltonian": 2.0}}]
    monkeypatch.setitem(reproduction.PAPER, "reproductions", some)
    comparison = Comparison({}, deviation=0.045, standard_error=0.1, threshold=3.0)
    monkeypatch.setattr(reproduction, "compared_with_ordinary", lambda _: comparison)
    reproduction.differences_of_others("wikitext-10m")
    assert capsys.readouterr().out.splitlines() == [
        "* midpoint: -0.100 to +0.500, in 3 of them; beyond ±0.090 in 2.",
        "* leapfrog: +0.100 to +0.100, in 1 of them; beyond ±0.090 in 1.",
        "* Hamiltonian: +0.000 to +0.000, in 1 of them; beyond ±0.090 in 0.",
    ]


def test_the_line_through_the_table_is_the_one_through_its_ends(capsys):
    """24 GB hold 6 sequences and 80 GB hold 26, so that one takes about 2.8 GB."""
    reproduction.table_3_lines()
    stored, midpoint, _ = capsys.readouterr().out.splitlines()
    assert float(re.search(r"([\d.]+) GB a sequence", stored)[1]) == pytest.approx((80 - 24) / (26 - 6), rel=0.03)
    assert float(re.search(r"([\d.]+) GB a sequence", midpoint)[1]) == pytest.approx((80 - 24) / (257 - 58), rel=0.03)
    assert f"({(40 - 24) / (12 - 6):.2f} to {(80 - 48) / (26 - 15):.2f} from one card to the next)" in stored


def test_a_speed_of_table_4_has_the_lowest_and_the_highest_round(tmp_path, monkeypatch, capsys):
    def point(arm, batch, seconds):
        return {"value": 16, "arm": arm, "memory": "1MiB", "batch_size": batch, "seconds_by_round": seconds}

    points = [
        point("plain_store", 2, [1.0, 1.0, 1.0]),
        point("plain_checkpoint", 4, [2.0, 2.0, 2.0]),
        point("rebuild", 8, [2.0, 4.0, 8.0]),
    ]
    study = {"recipe": {"memory": ["1MiB"]}, "points": points}
    (tmp_path / "bench-table4-cpu.json").write_text(json.dumps(study))
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    reproduction.table_4_measured()
    assert "| 16 | 2 | 4 | 8 | 1.00 (1.00 to 1.00) | 1.00 (0.50 to 2.00) |" in capsys.readouterr().out
