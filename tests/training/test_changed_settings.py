from dataclasses import replace
from pathlib import Path

import pytest

from revformers.errors import UserError
from revformers.training.changed_settings import compare_recipes
from revformers.training.finetune_recipe import ConversionSection, FinetuneRecipe
from revformers.training.recipe import DynamicsSection, ModelSection, Recipe, TrainingSection

RECIPE = Recipe(output="somewhere", training=TrainingSection(max_steps=1000))


def compare(recipe, step=10):
    return compare_recipes(Path("run"), RECIPE.to_dict(), recipe, step)


def training(**values):
    return replace(RECIPE, training=replace(RECIPE.training, **values))


def test_the_same_recipe_has_no_changes():
    assert compare(RECIPE) == ([], [])
    assert compare(RECIPE, step=1000) == ([], [])


def test_another_network_is_refused():
    for other in (
        replace(RECIPE, model=ModelSection(architecture="gpt2")),
        replace(RECIPE, dynamics=DynamicsSection(name="midpoint")),
    ):
        with pytest.raises(UserError, match=r"was started with (model\.architecture|dynamics\.name)"):
            compare(other)


@pytest.mark.parametrize(
    "values",
    [
        {"per_device_train_batch_size": 16},
        {"gradient_accumulation_steps": 2},
        {"weight_decay": 0.2},
        {"lr_scheduler_type": "constant"},
        {"seed": 1},
        {"precision": "bfloat16"},
        {"arguments": {"optim": "sgd"}},
    ],
)
def test_a_setting_that_a_checkpoint_fixes_is_refused(values):
    with pytest.raises(UserError, match=rf"was started with training\.{next(iter(values))}"):
        compare(training(**values))


def test_what_is_followed_is_noted_and_what_changes_nothing_is_not():
    other = replace(training(learning_rate=1e-6, save_total_limit=7), dynamics=DynamicsSection(activations="store"))
    changed, notes = compare(other)
    assert sorted(changed) == ["dynamics.activations", "training.learning_rate", "training.save_total_limit"]
    assert notes == ["# Up to step 10: training.learning_rate 0.001\n"]


def test_other_states_are_followed():
    other = replace(RECIPE, dynamics=DynamicsSection(states="auto:12"))
    assert compare(other) == (["dynamics.states"], ["# Up to step 10: dynamics.states 'auto'\n"])
    finetune = FinetuneRecipe()
    other = replace(finetune, conversion=ConversionSection(states="int64"))
    notes = compare_recipes(Path("run"), finetune.to_dict(), other, 10)[1]
    assert notes == ["# Up to step 10: conversion.states None\n"]


def test_a_change_that_comes_too_late_is_refused():
    compare(training(save_total_limit=7), step=1000)
    with pytest.raises(UserError, match=r"all its 1000 steps, so a change of training\.learning_rate has no effect"):
        compare(training(learning_rate=1.0), step=1000)
    with pytest.raises(UserError, match=r"already trained 1000 steps, more than the 900 of training\.max_steps"):
        compare(training(max_steps=900), step=1000)
