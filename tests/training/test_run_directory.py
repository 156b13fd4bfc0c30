import json
import os
import socket
from dataclasses import replace
from shutil import rmtree

import pytest
from torch import nn

from revformers.errors import UserError
from revformers.files import write_json, write_text
from revformers.training import run_directory
from revformers.training.former_run import FOLDER
from revformers.training.recipe import Recipe, TrainingSection
from revformers.training.recorded_recipe import RecordedRecipe
from revformers.training.run_directory import RunDirectory
from revformers.training.seal import seal

RECIPE = Recipe(output="somewhere", training=TrainingSection(max_steps=1000))


@pytest.fixture
def run(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        yield run


def claim(run, recipe=RECIPE, overwrite=False, data=None, **options):
    defaults = {"resume": False, "needs_best": False, "processes": 1, "tell": lambda line: None}
    return run.claim(recipe, overwrite=overwrite, data=lambda: data, **defaults | options)


def prepare(run, recipe=RECIPE, overwrite=False, **options):
    with RunDirectory(run.path) as again:  # another process, as the lock of a run is released at its end
        checkpoint = claim(again, recipe, overwrite, **options)
        again.begin(recipe, checkpoint, overwrite=overwrite)
        return checkpoint


def facts(run, **values):
    """The facts that a run seals a checkpoint with."""
    known = {"run": RecordedRecipe(run.path).run_identity(), "processes": 1, "data": None, "inputs": {}}
    return known | {"learning_rate": 1e-3, "unlogged_losses": [0.0], "last_logged_step": 0} | values


def add_checkpoint(run, step, complete=True, **values):
    directory = run.checkpoints.of_step(step)
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_text("weights")
    (directory / "trainer_state.json").write_text("{}")
    if complete:
        run.finish_checkpoint(step, facts(run, **values), 100, None)
    return directory


def started(run, *steps, **options):
    prepare(run)
    return [add_checkpoint(run, step, **options) for step in steps]


def test_a_fresh_directory_can_be_started_in(run):
    assert prepare(run) is None
    assert run.recipe.is_file()
    assert prepare(run) is None  # no checkpoint was reached


def test_the_latest_complete_checkpoint_is_resumed(run):
    complete = started(run, 90, 100)
    unfinished = add_checkpoint(run, 110, complete=False)  # the process was killed while this one was written
    assert run.checkpoints.complete() == complete
    assert prepare(run, resume=True) == complete[-1]
    assert not unfinished.exists()


def test_what_killed_runs_were_writing_is_removed_and_nothing_else(run):
    started(run, 90)
    for name in (".model.partial-abc", ".metrics.json.partial-x_1", ".mine"):
        (run.path / name).mkdir()
    prepare(run, resume=True)
    left = {path.name for path in run.path.iterdir()}
    assert ".mine" in left
    assert not any("partial" in name for name in left)


def test_a_run_is_not_destroyed_unasked(run):
    started(run, 10)
    with pytest.raises(UserError, match=r"already holds a run; give --resume .* --output DIRECTORY .* --overwrite"):
        prepare(run)
    assert len(run.checkpoints.complete()) == 1


@pytest.mark.parametrize("result", ["model", "adapter"])
def test_a_finished_run_is_not_destroyed_unasked(run, result):
    prepare(run)
    (run.path / result).mkdir()
    with pytest.raises(UserError, match="already holds a run"):
        prepare(run)


def test_overwriting_removes_the_run_and_nothing_else(run):
    started(run, 10)
    for directory in (run.model, run.adapter, run.conversion, run.path / "checkpoint-mine"):
        directory.mkdir()
    for file in (run.metrics, run.start):
        write_json(file, {})
    (run.path / "notes.txt").write_text("mine")
    with RunDirectory(run.path) as new:
        assert claim(new, overwrite=True) is None
        new.begin(RECIPE, None, overwrite=True)
        add_checkpoint(new, 5)
    left = [".lock", "checkpoint-5", "checkpoint-mine", "notes.txt", "recipe.yaml"]
    assert sorted(path.name for path in run.path.iterdir()) == left


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["model", "adapter", "conversion", "checkpoint-3", "metrics.json"])
def test_what_no_run_wrote_is_neither_deleted_nor_replaced(run, name, overwrite):
    (run.path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name} is there, but no recipe\.yaml of a run that wrote it, so it stays"):
        prepare(run, overwrite=overwrite)
    assert (run.path / name).is_dir()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_recipe_of_the_user_is_not_replaced(run, overwrite):
    run.path.mkdir()
    run.recipe.write_text("output: run\n")
    with pytest.raises(UserError, match="was not written by a run of this version of revformers, and stays"):
        prepare(run, overwrite=overwrite)
    assert run.recipe.read_text() == "output: run\n"


def test_a_symbolic_link_in_a_run_is_not_followed(run, tmp_path):
    started(run, 10)
    (tmp_path / "elsewhere").mkdir()
    run.model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="model is a symbolic link, which no run writes; remove it"):
        prepare(run, overwrite=True)
    assert (tmp_path / "elsewhere").is_dir()


def test_the_directory_itself_may_be_a_symbolic_link(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run.path.symlink_to(tmp_path / "elsewhere")
    started(run, 10)
    with RunDirectory(run.path) as new:
        claim(new, overwrite=True)
        new.begin(RECIPE, None, overwrite=True)
        assert run.path.is_symlink()
        assert not run.checkpoints.complete()
    assert len(run.checkpoints.complete()) == 1
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"is a symbolic link to .*elsewhere, which does not exist"):
        prepare(run)


def test_weights_that_do_not_fit_are_named_before_the_training(tmp_path):
    model = nn.Linear(2**30, 2**28, bias=False, device="meta")
    with pytest.raises(UserError, match=r"The trained weights alone take 1,099,511,627,776 MiB, and .* MiB left; make"):
        RunDirectory(tmp_path).check_space(model)
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(
        UserError, match="MiB left beside the run that is overwritten, which stays until the new one has"
    ):
        RunDirectory(tmp_path).check_space(model)
    RunDirectory(tmp_path).check_space(model.requires_grad_(False))


def test_a_failed_save_says_where_the_run_goes_on(run, monkeypatch):
    started(run, 10)
    unfinished = add_checkpoint(run, 20, complete=False)
    with (
        pytest.raises(UserError, match=r"checkpoint-20 failed: No space; put that right and"),
        run.saving(unfinished),
    ):
        raise RuntimeError("No space")
    assert not unfinished.exists()
    assert len(run.checkpoints.complete()) == 1
    with pytest.raises(UserError, match="give --resume, which continues from checkpoint-10"), run.saving(run.model):
        raise OSError("No space")
    monkeypatch.setattr(run_directory, "LEFT_ON_A_FULL_DISK", 2**70)
    with pytest.raises(UserError, match="model failed: its disk is full; put"), run.saving(run.model):
        raise RuntimeError("unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("resume", "overwrite", "message"), [(True, False, "no checkpoint"), (True, True, "give one of")]
)
def test_what_cannot_be_resumed_is_named(run, resume, overwrite, message):
    with pytest.raises(UserError, match=message):
        prepare(run, resume=resume, overwrite=overwrite)


def test_two_runs_do_not_share_a_directory(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    with RunDirectory(run.path) as first:
        first.begin(RECIPE, claim(first), overwrite=False)
        for path in (run.path, tmp_path / "link"):
            with pytest.raises(UserError, match=f"is in use by a run of process {os.getpid()} on"):
                prepare(RunDirectory(path), overwrite=True)
    assert prepare(run) is None


def test_another_number_of_processes_does_not_continue_a_run(run):
    (checkpoint,) = started(run, 10, processes=2)
    assert prepare(run, resume=True, processes=2) == checkpoint
    with pytest.raises(UserError, match=r"started with 2 processes, not 1, .* with torchrun --nproc-per-node 2"):
        prepare(run, resume=True)


def test_changed_data_do_not_continue_a_run(run):
    with RunDirectory(run.path) as first:
        first.begin(RECIPE, claim(first, data="one"), overwrite=False)
        checkpoint = run.checkpoints.of_step(10)
        checkpoint.mkdir()
        first.finish_checkpoint(10, facts(run, data="one"), 100, None)
    assert prepare(run, resume=True, data="one") == checkpoint
    with pytest.raises(UserError, match=r"The data of the run in .* changed after checkpoint-10 was saved"):
        prepare(run, resume=True, data="other")


def test_a_claim_changes_nothing_before_the_run_begins(run):
    """A recipe may still be refused, such as one whose model cannot be loaded."""
    claim(run)
    assert not run.path.exists()
    started(run, 10, 20)
    unfinished = add_checkpoint(run, 30, complete=False)
    before = run.recipe.read_text()
    longer = replace(RECIPE, training=replace(RECIPE.training, max_steps=2000))
    for options in ({"overwrite": True}, {"resume": True}):
        with RunDirectory(run.path) as again:
            claim(again, longer, **options)
    assert (run.recipe.read_text(), len(run.checkpoints.complete()), unfinished.exists()) == (before, 2, True)


def test_a_run_that_begins_after_the_claim_of_another_stays(run):
    claim(run)
    started(run, 10)
    with pytest.raises(UserError, match="already holds a run"):
        run.begin(RECIPE, None, overwrite=False)
    assert len(run.checkpoints.complete()) == 1


def test_the_content_of_the_data_is_read_last(run):
    def reading():
        raise AssertionError

    started(run, 10)
    with RunDirectory(run.path) as again, pytest.raises(UserError, match="already holds a run"):
        again.claim(
            RECIPE, resume=False, overwrite=False, needs_best=False, processes=1, data=reading, tell=lambda line: None
        )


def test_the_best_checkpoint_is_checked_where_it_is_needed(run):
    _, latest = started(run, 10, 20)
    (latest / "trainer_state.json").write_text('{"best_model_checkpoint": "/elsewhere/checkpoint-10"}')
    run.finish_checkpoint(20, facts(run), 100, None)
    assert prepare(run, resume=True, needs_best=True) == latest
    (run.checkpoints.of_step(10) / "model.safetensors").unlink()
    assert prepare(run, resume=True) == latest
    with pytest.raises(UserError, match=r"is missing; load_best_model_at_end needs checkpoint-10"):
        prepare(run, resume=True, needs_best=True)


def test_a_home_is_that_of_the_trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/run").path == tmp_path / "run"


def test_a_refused_command_removes_nothing(run):
    started(run, 10)
    unfinished = add_checkpoint(run, 20, complete=False)
    with pytest.raises(UserError, match="already holds a run"):
        prepare(run)
    assert unfinished.is_dir()


def overwriting(run):
    """A run that overwrites another one with a checkpoint and results, and has begun."""
    started(run, 10)
    run.model.mkdir()
    write_text(run.model / "weights", "former")
    write_json(run.metrics, {})
    run.finish(10)
    new = RunDirectory(run.path)
    claim(new, overwrite=True)
    new.begin(RECIPE, None, overwrite=True)
    assert not run.model.exists()
    return new


def content(run):
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(run.path).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_is_overwritten_is_back_if_the_new_one_is_refused_before_its_first_checkpoint(run, killed):
    former = {}

    def refused():
        with overwriting(run) as new:
            former.update(
                {name.removeprefix(f"{FOLDER}/"): text for name, text in content(run).items() if FOLDER in name}
            )
            assert "model/weights" in former
            write_json(run.start, {})
            run.conversion.mkdir()
            add_checkpoint(run, 3, complete=False)
            if killed:
                new.lock.release()
            raise UserError("refused")

    with pytest.raises(UserError, match="refused") as caught:
        refused()
    assert getattr(caught.value, "__notes__", []) == [f"The former run is still in {run.path}."]
    if killed:
        told = []
        with RunDirectory(run.path) as again:
            assert claim(again, resume=True, tell=told.append) == run.checkpoints.of_step(10)
        assert told == [f"The former run is back in {run.path}, because the one that overwrote it saved no checkpoint."]
    assert content(run) == former
    assert not (run.path / FOLDER).exists()


def test_a_former_run_that_was_not_touched_yet_is_named_too(run):
    def stopped(overwrite, resume=False):
        with RunDirectory(run.path) as new:
            claim(new, overwrite=overwrite, resume=resume)
            raise KeyboardInterrupt

    def notes(*options):
        with pytest.raises(KeyboardInterrupt) as caught:
            stopped(*options)
        return getattr(caught.value, "__notes__", [])

    assert notes(True) == []
    started(run, 10)
    assert notes(True) == [f"The former run is still in {run.path}."]
    assert notes(False, True) == []


@pytest.mark.parametrize("end", [lambda run: add_checkpoint(run, 3), lambda run: run.finish(3)])
def test_a_run_that_is_overwritten_goes_when_the_new_one_has_something_to_keep(run, end):
    with overwriting(run) as new:
        end(new)
        assert not (run.path / FOLDER).exists()
    assert run.checkpoints.of_step(10) not in run.checkpoints.complete()
    assert not run.model.exists()


def test_a_result_is_that_of_its_checkpoint_and_whole(run):
    (checkpoint,) = started(run, 10)
    told = []
    assert not run.is_finished(checkpoint, told.append)
    run.model.mkdir()
    write_text(run.model / "weights", "weights")
    write_text(run.model / "README.md", "card")
    write_json(run.metrics, {})
    run.finish(10)
    assert run.is_finished(checkpoint, told.append)
    write_text(run.model / "README.md", "a better card")
    assert run.is_finished(checkpoint, told.append)
    write_text(run.model / "weights", "")
    assert not told
    assert not run.is_finished(checkpoint, told.append)
    assert "model/weights is damaged (its content has changed since it was saved): the run ends again from" in told[0]
    write_text(run.model / "weights", "weights")
    write_text(checkpoint / "model.safetensors", "other")
    run.finish_checkpoint(10, facts(run), 100, None)
    assert not run.is_finished(checkpoint, told.append)
    run.finish(10)
    assert run.is_finished(checkpoint, told.append)
    seal(run.path, [run.model])  # of another version, without the checkpoint
    assert not run.is_finished(checkpoint, told.append)
    run.finish(10)
    prepare(run, resume=True)
    assert not run.is_finished(checkpoint, told.append), "training goes on"


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    started(run, 10)
    other = RunDirectory(tmp_path / "other")
    (checkpoint,) = started(other, 20)
    checkpoint.rename(run.checkpoints.of_step(20))
    with pytest.raises(UserError, match=r"checkpoint-20 belongs to another run than .*recipe\.yaml; move it out"):
        prepare(run, resume=True)


@pytest.mark.parametrize("fact", run_directory.FACTS)
def test_a_checkpoint_without_the_facts_of_this_version_is_refused(run, fact):
    (checkpoint,) = started(run, 10)
    seal = json.loads((checkpoint / "checksums.json").read_text())
    del seal[fact]
    write_json(checkpoint / "checksums.json", seal)
    with pytest.raises(UserError, match=f"was saved by another version of revformers, without '{fact}' in its"):
        prepare(run, resume=True)


@pytest.mark.parametrize(
    "change", [lambda run: run.path.rename(run.path.with_name("moved")), lambda run: rmtree(run.path)]
)
def test_a_directory_that_is_moved_or_deleted_during_its_run_is_noticed(run, change, monkeypatch):
    with RunDirectory(run.path) as first:
        first.begin(RECIPE, claim(first), overwrite=False)
        first.check_in_place()
        change(run)
        for _ in range(2):
            with pytest.raises(UserError, match="is no longer the directory in which this run began"):
                first.check_in_place()
            run.path.mkdir(exist_ok=True)
        with RunDirectory(run.path) as second:
            monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")  # another process
            second.begin(RECIPE, claim(second), overwrite=False)
            first.lock.release()
            assert second.lock.is_in_place()


def test_changed_inputs_do_not_continue_a_run(run):
    (checkpoint,) = started(run, 10, inputs={"tokenizer": "one"})
    run.check_inputs(checkpoint, {"tokenizer": "one", "weights": "one"})
    with pytest.raises(UserError, match=r"The tokenizer of the run in .* changed after checkpoint-10 was saved, under"):
        run.check_inputs(checkpoint, {"tokenizer": "other"})


@pytest.mark.parametrize("part", ["model", "adapter/weights", "checkpoint-3", "sample.txt", ".former-run/model"])
def test_a_recipe_that_reads_what_the_run_replaces_is_refused(run, part):
    (run.path / part).mkdir(parents=True)
    for field in ("tokenizer", "source", "validation_source"):
        recipe = replace(RECIPE, data=replace(RECIPE.data, **{field: str(run.path / part)}))
        with pytest.raises(UserError, match=rf"The run would replace its data\.{field} .*{part} in .*; change output"):
            claim(run, recipe, overwrite=True)


def test_a_run_does_not_take_its_own_result_for_its_model(run):
    assert run.writes_into(run.model)
    assert run.writes_into(run.checkpoints.of_step(3) / "part")
    assert not run.writes_into(run.path)
    assert not run.writes_into(run.path / "models" / "one")
    assert not run.writes_into(run.path.parent)
