from dataclasses import replace

import pytest
import yaml

from revformers.errors import UserError
from revformers.training.recipe import DynamicsSection, Recipe, TrainingSection
from revformers.training.recorded_recipe import RecordedRecipe

RECIPE = Recipe(output="somewhere", training=TrainingSection(max_steps=1000))


@pytest.fixture
def recorded(tmp_path):
    recorded = RecordedRecipe(tmp_path)
    recorded.write(RECIPE)
    return recorded


def changed(**values):
    return replace(RECIPE, training=replace(RECIPE.training, **values))


@pytest.mark.parametrize("rest", ["", "training: {"])
def test_a_damaged_recipe_is_named(recorded, rest):
    recorded.path.write_text(recorded.path.read_text().splitlines()[0] + "\n" + rest)
    with pytest.raises(UserError, match=r"recipe\.yaml is damaged"):
        recorded.check_changes(RECIPE, 10)


@pytest.mark.parametrize("content", [b"output: run\n", b"\xff\xfe"])
def test_a_recipe_that_no_run_wrote_is_known(recorded, content):
    recorded.check_author()
    recorded.path.write_bytes(content)
    with pytest.raises(UserError, match="was not written by a run of this version of revformers, and stays"):
        recorded.check_author()


def test_a_setting_that_cannot_be_followed_is_refused_and_the_recipe_stays(recorded):
    before = recorded.path.read_text()
    for method in (recorded.check_changes, recorded.follow):
        with pytest.raises(UserError, match=r"was started with training\.seed"):
            method(changed(seed=1), 10)
    recorded.check_changes(changed(learning_rate=1.0), 10)
    assert recorded.path.read_text() == before


def test_a_setting_that_is_followed_is_recorded_with_what_was_used_before(recorded):
    longer = replace(changed(learning_rate=1e-6, max_steps=5000), dynamics=DynamicsSection(activations="store"))
    recorded.follow(longer, 10)
    recorded.follow(changed(max_steps=5000, learning_rate=1e-4), 20)
    notes = [line for line in recorded.path.read_text().splitlines() if line.startswith("# Up to")]
    assert notes == [
        "# Up to step 10: training.learning_rate 0.001",
        "# Up to step 10: training.max_steps 1000",
        "# Up to step 20: training.learning_rate 1e-06",
    ]
    assert yaml.safe_load(recorded.path.read_text())["training"]["learning_rate"] == 1e-4
    recorded.write(RECIPE)
    assert "# Up to" not in recorded.path.read_text()


def test_a_run_keeps_its_identity_and_another_one_has_another(recorded):
    identity = recorded.run_identity()
    recorded.follow(changed(learning_rate=1e-6), 10)
    assert recorded.run_identity() == identity
    recorded.write(RECIPE)
    assert recorded.run_identity() != identity
    recorded.path.write_text(recorded.path.read_text().replace("# Run ", "# "))
    assert recorded.run_identity() is None
