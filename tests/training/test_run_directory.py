from dataclasses import replace

import pytest

from revformers.errors import UserError
from revformers.files import write_json
from revformers.training.recipe import DynamicsSection, ModelSection, Recipe, TrainingSection
from revformers.training.run_directory import RunDirectory

RECIPE = Recipe(output="somewhere")


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def add_checkpoint(run, step, state="{}"):
    directory = run.path / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_text("weights")
    if state is not None:
        (directory / "trainer_state.json").write_text(state)
    return directory


def test_a_fresh_directory_can_be_started_in(run):
    assert run.prepare(RECIPE, resume=False, overwrite=False) is None
    assert run.recipe.is_file()
    assert run.prepare(RECIPE, resume=False, overwrite=False) is None  # no checkpoint was reached


def test_the_latest_complete_checkpoint_is_resumed(run):
    run.prepare(RECIPE, resume=False, overwrite=False)
    complete = [add_checkpoint(run, 90), add_checkpoint(run, 100)]
    add_checkpoint(run, 110, state=None)  # the machine went away while these two were written
    add_checkpoint(run, 120, state='{"global_st')
    assert run.checkpoints() == complete
    assert run.prepare(RECIPE, resume=True, overwrite=False) == complete[-1]


def test_a_run_is_not_destroyed_unasked(run):
    add_checkpoint(run, 10)
    with pytest.raises(UserError, match=r"already holds a run; give --resume .* --output DIRECTORY .* --overwrite"):
        run.prepare(RECIPE, resume=False, overwrite=False)
    assert len(run.checkpoints()) == 1


@pytest.mark.parametrize("result", ["model", "adapter"])
def test_a_finished_run_is_not_destroyed_unasked(run, result):
    (run.path / result).mkdir(parents=True)
    with pytest.raises(UserError, match="already holds a run"):
        run.prepare(RECIPE, resume=False, overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(run):
    add_checkpoint(run, 10)
    for directory in (run.model, run.adapter, run.conversion):
        directory.mkdir()
    for file in (run.metrics, run.start):
        write_json(file, {})
    (run.path / "notes.txt").write_text("mine")
    assert run.prepare(RECIPE, resume=False, overwrite=True) is None
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "recipe.yaml"]


@pytest.mark.parametrize(
    ("resume", "overwrite", "message"), [(True, False, "no checkpoint"), (True, True, "give one of")]
)
def test_what_cannot_be_resumed_is_named(run, resume, overwrite, message):
    with pytest.raises(UserError, match=message):
        run.prepare(RECIPE, resume=resume, overwrite=overwrite)


def test_a_run_of_another_model_is_not_resumed(run):
    run.prepare(RECIPE, resume=False, overwrite=False)
    add_checkpoint(run, 10)
    for other in (
        replace(RECIPE, model=ModelSection(architecture="gpt2")),
        replace(RECIPE, dynamics=DynamicsSection(name="midpoint")),
    ):
        with pytest.raises(UserError, match=r"was started with (model\.architecture|dynamics\.name)"):
            run.prepare(other, resume=True, overwrite=False)


def test_length_and_activations_may_change_on_the_way(run):
    run.prepare(RECIPE, resume=False, overwrite=False)
    add_checkpoint(run, 10)
    longer = replace(RECIPE, training=TrainingSection(max_steps=5000), dynamics=DynamicsSection(activations="store"))
    assert run.prepare(longer, resume=True, overwrite=False) is not None
