import json

import pytest

from revformers.errors import UserError
from revformers.training.checkpoint_folders import CheckpointFolders, step_of
from revformers.training.seal import seal


@pytest.fixture
def folders(tmp_path):
    return CheckpointFolders(tmp_path)


def add(folders, step, complete=True, best=None):
    folder = folders.of_step(step)
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    (folder / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": best and f"/elsewhere/checkpoint-{best}"})
    )
    if complete:
        seal(folder)
    return folder


def test_checkpoints_are_in_the_order_of_their_steps(folders, tmp_path):
    (tmp_path / "checkpoint-mine").mkdir()
    expected = [add(folders, step, complete=step != 20) for step in (9, 100, 20)]
    assert [step_of(folder) for folder in folders.all()] == [9, 20, 100]
    assert folders.complete() == expected[:2]
    folders.remove_unfinished()
    assert folders.all() == expected[:2]
    assert (tmp_path / "checkpoint-mine").is_dir()


@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before_it(folders, harm):
    older, latest = add(folders, 90), add(folders, 100)
    file = latest / "model.safetensors"
    content = {"flip": b"weighus", "cut": b"weigh"}
    file.unlink() if harm == "lose" else file.write_bytes(content[harm])
    told = []
    assert folders.latest_whole(told.append) == older
    (line,) = told
    assert line.startswith(f"{file} is {'missing' if harm == 'lose' else 'damaged'}")
    assert line.endswith(
        "checkpoint-100 is set aside as damaged-checkpoint-100, and the run continues from checkpoint-90."
    )
    assert folders.complete() == [older]
    assert [folder.name for folder in folders.set_aside()] == ["damaged-checkpoint-100"]
    (older / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=r"trainer_state\.json is missing, and no older checkpoint is whole; restore"):
        folders.latest_whole(told.append)
    assert older.is_dir()


def test_older_checkpoints_go_only_when_a_newer_one_is_complete(folders):
    best, *_ = [add(folders, step) for step in (10, 20, 30)]
    add(folders, 40, complete=False)
    assert len(folders.complete()) == 3
    folders.finish(40, {}, 2, str(best))
    assert [folder.name for folder in folders.complete()] == ["checkpoint-10", "checkpoint-40"]


def test_the_best_checkpoint_is_found_where_the_directory_is_now(folders):
    assert folders.best_of(add(folders, 2)) is None
    assert folders.best_of(add(folders, 4, best=2)) == folders.of_step(2)


def test_the_best_checkpoint_is_needed_whole(folders):
    for step, best in ((2, None), (4, 4), (6, 4)):
        folders.check_best(add(folders, step, best=best))
    (folders.of_step(4) / "model.safetensors").write_text("weighus")
    folders.check_best(folders.of_step(2))  # an earlier one does not need it
    with pytest.raises(UserError, match=r"model\.safetensors is damaged .* needs checkpoint-4, the best checkpoint"):
        folders.check_best(folders.of_step(6))
