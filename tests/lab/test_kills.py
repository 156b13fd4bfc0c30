"""The study of killed runs, with other programs in the place of the runs."""

import itertools
import os
import random
from pathlib import Path

import pytest

from lab.studies import kills
from revformers.files import write_json

SLEEP = "exec sleep 60"
FINISH = """mkdir -p {output}; echo > {output}/metrics.json
echo '[{{"loss": 2, "seconds": '$$'}}]' > {output}/history.json"""
FAIL = "echo The recipe is wrong. >> {log}; exit 2"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that returns a killed run and the starts left over; a start is two lines of a shell."""
    monkeypatch.chdir(tmp_path)
    write_json(Path("undisturbed", "history.json"), [{"loss": 2, "seconds": 0}])
    changes = itertools.count()
    monkeypatch.setattr(kills, "unfinished", lambda output: {("checkpoint-3", next(changes))})
    monkeypatch.setattr(kills, "same_weights", lambda found, expected: True)

    def run(number, *starts):
        left = list(starts)

        def start(command, output, processes, resume, log):
            log.touch()
            for rank in range(processes):
                kills.met(output, rank).touch()
            lines = [line.format(output=output, log=log) for line in left.pop(0)]
            return [os.posix_spawn("/bin/sh", ["sh", "-c", line], os.environ) for line in lines]

        monkeypatch.setattr(kills, "start", start)
        return kills.killed_run("pretrain", 2, 0, number, 0, Path("undisturbed")), left

    return run


def test_a_process_that_does_not_end_after_the_kill_of_another_fails_the_run(study, monkeypatch):
    monkeypatch.setattr(kills, "SECONDS_TO_END", 0.5)
    run, left = study(1, (SLEEP, SLEEP), (FINISH, "exit 0"))
    assert (len(run.kills), run.hung, run.identical, run.passed, left) == (1, 1, True, False, [])


def test_a_process_that_ends_after_the_kill_of_another_passes(study):
    ending = "exec sleep 0.5"
    run, left = study(1, (ending, ending), (FINISH, "exit 0"))
    assert (len(run.kills), run.hung, run.passed, left) == (1, 0, True, [])


@pytest.mark.parametrize("number", [0, 1])
def test_a_start_that_fails_before_a_kill_ends_the_run_with_its_sentence(study, number, monkeypatch):
    monkeypatch.setattr(kills, "kill", lambda *_: None)
    run, left = study(number, (FAIL, FAIL), (FINISH, FINISH))
    assert (run.kills, run.sentences, run.identical, len(left)) == ([], ["The recipe is wrong."], False, 1)


def test_a_run_that_ends_before_its_kill_is_repeated(study, monkeypatch):
    outcomes = [None, "training"]
    monkeypatch.setattr(kills, "kill", lambda *_: outcomes.pop(0))
    run, left = study(1, (FINISH, FINISH), ("exit 1", "exit 1"), (FINISH, FINISH))
    assert (run.kills, run.passed, left) == (["training"], True, [])


def test_a_run_that_is_not_to_be_killed_is_started_once(study):
    run, left = study(0, (FINISH, FINISH), (FINISH, FINISH))
    assert (run.passed, len(left)) == (True, 1)
    run, left = study(0, ("rm {output}/metrics.json", "exit 0"), (FINISH, FINISH))
    assert (run.sentences, run.passed, len(left)) == (["exit codes [0, 0], without figures"], False, 1)


def test_other_losses_are_not_identical(study):
    write_json(Path("undisturbed", "history.json"), [{"loss": 3, "seconds": 0}])
    run, _ = study(0, (FINISH, FINISH))
    assert (run.sentences, run.identical) == ([], False)


@pytest.mark.parametrize(("ranks", "killed"), [([0], None), ([0, 1], "preparing")])
def test_no_process_is_killed_before_all_have_met(tmp_path, ranks, killed):
    for rank in ranks:
        kills.met(tmp_path / "run", rank).touch()
    processes = [os.posix_spawn("/bin/sleep", ["sleep", "0.5"], os.environ) for _ in range(2)]
    chance = random.Random(1)
    chance.random = lambda: 1.0  # not while files are written
    assert kills.kill(processes, tmp_path / "run", chance, 0) == killed
    kills.end(processes)


def test_what_an_earlier_kill_left_is_not_being_written(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    assert (before := kills.unfinished(tmp_path))
    assert kills.unfinished(tmp_path) == before
    (checkpoint / "model.safetensors").touch()
    assert kills.unfinished(tmp_path) - before
