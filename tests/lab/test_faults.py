"""The study of faults, without those that start other processes."""

import json
import signal

import pytest
import torch

import revformers as rf
from lab.docs import markdown
from lab.studies.faults import command as command_module
from lab.studies.faults import in_data, in_runs, in_shards, in_training
from lab.studies.faults.__main__ import SECTIONS, main
from lab.studies.faults.command import Ended, command
from lab.studies.faults.fault import ACCEPTABLE, Outcome, first_sentence


@pytest.mark.thorough
@pytest.mark.parametrize("fault", in_training.faults(), ids=lambda fault: fault.words)
def test_a_fault_in_training_is_refused_or_right(fault, tmp_path):
    outcome = fault.scenario(tmp_path)
    assert outcome.result in ACCEPTABLE
    assert bool(outcome.sentence) == (outcome.result == "refused")
    assert list(outcome.policies) == list(in_training.POLICIES)
    assert {one.result for one in outcome.policies.values()} <= set(ACCEPTABLE)


def test_other_gradients_than_stored_ones_are_wrong(tmp_path):
    calls = []

    def run(model):
        calls.append(None)
        return [torch.tensor(float(len(calls) > 4))]  # not under the fourth policy, and the fifth

    assert (
        in_training._under_every_policy(run)(tmp_path).seen == "other gradients under budget:rebuild, without an error"
    )


def test_every_fault_has_words_of_its_own_and_a_remedy():
    found = [fault for faults in SECTIONS.values() for fault in faults()]
    assert len({fault.words for fault in found}) == len(found) > 50
    assert all(fault.remedy.endswith(".") and not fault.words.endswith(".") for fault in found)
    assert in_runs.faults()[0].scenario is in_runs._killed
    assert len(in_data.faults()) > len(in_shards.faults())


def test_the_committed_table_has_every_fault_and_none_is_wrong():
    rows = markdown.result("faults")["faults"]
    assert [(row["section"], row["fault"], row["remedy"]) for row in rows] == [
        (section, fault.words, fault.remedy) for section, faults in SECTIONS.items() for fault in faults()
    ]
    assert {row["result"] for row in rows} <= set(ACCEPTABLE)


def test_the_first_sentence_of_a_message_names_no_folder(tmp_path):
    message = f"{tmp_path}/run holds no\ncheckpoint, e.g. 'model.safetensors'. Give another --output."
    assert first_sentence(message, tmp_path) == "run holds no checkpoint, e.g. 'model.safetensors'"
    assert first_sentence("The blend is 0; choose another.") == "The blend is 0"


@pytest.mark.parametrize(
    ("code", "output", "result", "sentence"),
    [
        (0, "Finished.", "wrong", ""),
        (2, "loading\nrevformers pretrain: run holds a run; give --resume.\n", "refused", "run holds a run"),
        (1, "Traceback (most recent call last):\n  line\nKeyError: 'a'\nlast words\n", "traceback", "KeyError: 'a'"),
        (
            1,
            "[rank0]: revformers pretrain: Stopped.\nTraceback (most recent call last):\na.ChildFailedError: \n=====",
            "refused",
            "Stopped",
        ),
        (-11, "revformers pretrain: run is a file.\nSegmentation fault\n", "wrong", "run is a file"),
        (-9, "step 5\n", "wrong", "step 5"),
        (1, "step 5\n", "wrong", "step 5"),
        (130, "Stopped at step 5.\nResume with: revformers\n", "refused", "Stopped at step 5"),
        (130, "\nInterrupted: plan was stopped before it had anything to save.\n", "refused", None),
    ],
)
def test_what_a_user_sees_of_a_command(code, output, result, sentence, tmp_path):
    outcome = Ended(code, output, tmp_path).outcome()
    assert (outcome.result, outcome.sentence) == (result, outcome.sentence if sentence is None else sentence)
    assert outcome.seen.startswith(f"exit code {code}")


def test_a_command_that_does_not_end_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(command_module, "TIME_LIMIT", 0.5)
    (tmp_path / "sleep.py").write_text("import time\ntime.sleep(60)")
    ended = command(tmp_path, "sleep.py")
    assert ended.code is None
    assert ended.outcome() == Outcome("wrong", "no end in 0.5 seconds")


def by_torch(model):
    return torch.ones(2) @ torch.ones(3)


def by_revformers(model):
    return rf.BlendedMidpoint("1/0")


@pytest.mark.parametrize(("fail", "result"), [(by_torch, "wrong"), (by_revformers, "refused")])
def test_an_error_is_a_refusal_if_revformers_raised_it(fail, result):
    assert in_training._outcome(fail, "rebuild", None).result == result


@pytest.mark.parametrize(
    ("code", "output", "result", "seen"),
    [
        (1, "Refused: ValueError: Layer 1 is sharded. Then more.\nRefused: ValueError: Layer 1 is", "refused", None),
        (1, "Traceback (most recent call last):\nRuntimeError: [gloo] Connection closed by peer", "wrong", None),
        (1, "gradients that differ by 0.1", "wrong", "exit code 1"),
        (-11, "", "wrong", "exit code -11"),
    ],
)
def test_what_a_user_sees_of_two_processes(code, output, result, seen, tmp_path):
    outcome = in_shards._outcome(Ended(code, output, tmp_path))
    assert outcome.result == result
    assert seen in (None, outcome.seen)


def test_a_resumed_run_of_two_processes_is_compared_with_an_undisturbed_one(tmp_path, monkeypatch):
    """A stand-in for the commands writes other weights when it resumes."""

    def stand_in(folder, *words, processes=1, meanwhile=None):
        assert processes == 2
        model = folder / "run/model/model.safetensors"
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(weights.pop(0))
        stopped = meanwhile is not None
        return Ended(int(stopped), "revformers pretrain: Another process has ended.\n" if stopped else "", folder)

    monkeypatch.setattr(in_runs, "command", stand_in)
    for resumed, result in ((b"same", "refused"), (b"other", "wrong")):
        weights = [b"", resumed, b"same"]
        in_runs.undisturbed.cache_clear()
        (tmp_path / result).mkdir()
        assert in_runs._one_rank(signal.SIGKILL)(tmp_path / result).result == result
    in_runs.undisturbed.cache_clear()


@pytest.mark.thorough
def test_a_command_runs_in_the_folder(tmp_path):
    ended = command(tmp_path, "pretrain", "none.yaml")
    assert ended.outcome().sentence == "There is no recipe 'none.yaml'"
    assert ended.code == 2


def test_the_study_writes_what_it_saw(tmp_path, capsys):
    path = tmp_path / "faults.json"
    assert main(["--only", "A budget is too small", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())["faults"]
    assert row["section"] == "Training"
    assert row["policies"]["offload"] == {name: row[name] for name in ("result", "seen", "sentence")}
    assert "refused  A budget is too small for the batch: UserError" in capsys.readouterr().out
