import json

import pytest
import torch

from lab.bench import comparison as module
from lab.bench import process
from lab.bench.comparison import Comparison, ComparisonOptions, workload_of
from revformers.errors import UserError
from tests.lab.bench.example import measure_here
from tests.training.tiny import tiny_recipe

OPTIONS = ComparisonOptions(dynamics_steps=3, arm_steps=2, depths=(2, 4), processes_at_once=1)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(process, "measure_peak_memory", measure_here)


@pytest.fixture
def recipe(tmp_path):
    return tiny_recipe(tmp_path)


@pytest.mark.thorough
def test_every_part_of_a_comparison(recipe):
    lines = []
    result = json.loads(json.dumps(Comparison(recipe, OPTIONS, lines.append).run()))
    rows = {row["name"]: row for row in result["dynamics"]}
    assert list(rows) == ["residual", "midpoint", "blended_midpoint", "leapfrog", "hamiltonian"]
    assert "bit_exact" not in rows.pop("residual")
    assert all(row["bit_exact"] for row in rows.values())
    assert {name: row["side_information_bits"] for name, row in rows.items() if row["side_information_bits"]} == {
        "blended_midpoint": 1
    }
    assert len({row["validation_loss"] for row in result["dynamics"]}) == 5

    # The recipe's GPT-2 has dropout, so this also says that every arm draws the same masks.
    arms = {row["arm"]: row for row in result["arms"]["rows"]}
    assert list(arms) == ["store", "checkpoint", "rebuild"]
    assert all(row["same_losses_as_store"] and row["same_weights_as_store"] for row in arms.values())
    assert result["arms"]["verification"]["bit_exact"]
    assert arms["store"]["peak"] > arms["rebuild"]["peak"] > 0

    growth = {row["arm"]: row["share_of_layer_input"] for row in result["depth"]["growth"]}
    # Two numbers a layer, by which its evaluations are compared; in a model as small as this they show.
    assert growth["rebuild"] == pytest.approx(0, abs=0.05)
    assert growth["checkpoint"] > 1
    assert result["network"]["width"] == 32
    assert any("3 steps each" in line for line in lines)


def test_the_workload_is_that_of_the_recipe(tmp_path):
    workload = workload_of(tiny_recipe(tmp_path, {"training.precision": "bfloat16"}))
    assert (workload.layers, workload.width, workload.batch_size, workload.sequence_length) == (2, 32, 2, 32)
    assert workload.precision == "bfloat16_autocast"
    assert workload_of(tiny_recipe(tmp_path, {"model.dtype": "bfloat16"})).precision == "bfloat16"
    assert workload_of(tiny_recipe(tmp_path)).precision == "float32"


def test_the_recipe_keeps_its_own_options(tmp_path):
    recipe = tiny_recipe(tmp_path, {"dynamics.name": "midpoint", "dynamics.options.readout": "mean"})
    compared = module._dynamics_to_compare(module.build_dynamics(recipe.dynamics))
    assert [one.name for one in compared] == ["midpoint", "blended_midpoint", "leapfrog", "hamiltonian"]
    assert compared[0].readout == "mean"


def test_an_architecture_without_branches_has_no_hamiltonian(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, {"dynamics.name": "midpoint"})
    monkeypatch.setattr("revformers.models.attach.find_layout", lambda layer: None)
    row = Comparison(recipe, OPTIONS).compare_dynamics()[-1]
    assert row["name"] == "hamiltonian"
    assert row["unavailable"]
    assert "validation_loss" not in row


@pytest.mark.thorough
def test_blends_for_one_depth_are_not_measured_at_others(tmp_path):
    recipe = tiny_recipe(tmp_path, {"dynamics.name": "blended_midpoint", "dynamics.options.blend": [0.5, 1]})
    assert "2 blends for a model of 4 layers" in Comparison(recipe, OPTIONS).compare_arms()["depth"]["unavailable"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics.name": "residual", "dynamics.activations": "store"}, "which cannot be rebuilt"),
        ({"training.precision": "float16"}, "float32 or bfloat16"),
        ({"training.per_device_train_batch_size": 500}, "3 batches of 500 blocks"),
    ],
)
def test_recipes_that_cannot_be_compared_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Comparison(tiny_recipe(tmp_path, changes), OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arm_steps": 1}, "at least 2 steps"),
        ({"depths": (4,)}, "two different numbers"),
        ({"depths": (0, 4)}, "of 1 or more"),
        ({"processes_at_once": 0}, "one process"),
    ],
)
def test_options_that_measure_nothing_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ComparisonOptions(**options)


@pytest.mark.thorough
def test_a_comparison_repeats_its_losses(recipe):
    comparison = Comparison(recipe, OPTIONS)
    torch.manual_seed(1)
    first = [row["validation_loss"] for row in comparison.compare_dynamics()]
    torch.manual_seed(2)
    assert [row["validation_loss"] for row in comparison.compare_dynamics()] == first
