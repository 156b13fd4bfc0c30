"""The study of faults, without those that start other processes."""

import pytest
import torch

from lab.docs import tables
from lab.studies.faults import in_data, in_runs, in_shards, in_training
from lab.studies.faults.__main__ import SECTIONS, main
from lab.studies.faults.command import Ended, command
from lab.studies.faults.fault import ACCEPTABLE, first_sentence


@pytest.mark.thorough
@pytest.mark.parametrize("fault", in_training.faults(), ids=lambda fault: fault.words)
def test_a_fault_in_training_is_refused_or_right(fault, tmp_path):
    outcome = fault.scenario(tmp_path)
    assert outcome.result in ACCEPTABLE
    assert bool(outcome.sentence) == (outcome.result == "refused")


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
    rows = tables.result("faults")["faults"]
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
        (-9, "step 5\n", "refused", "step 5"),
    ],
)
def test_what_a_user_sees_of_a_command(code, output, result, sentence, tmp_path):
    outcome = Ended(code, output, tmp_path).outcome()
    assert (outcome.result, outcome.sentence) == (result, sentence)
    assert outcome.seen.startswith(f"exit code {code}")


@pytest.mark.thorough
def test_a_command_runs_in_the_folder(tmp_path):
    ended = command(tmp_path, "pretrain", "none.yaml")
    assert ended.outcome().sentence == "There is no recipe 'none.yaml'"
    assert ended.code == 2


def test_the_study_writes_what_it_saw(tmp_path, capsys):
    path = tmp_path / "faults.json"
    assert main(["--only", "A budget is too small", "--output", str(path)]) == 0
    assert '"section": "Training"' in path.read_text()
    assert "refused  A budget is too small for the batch: UserError" in capsys.readouterr().out
