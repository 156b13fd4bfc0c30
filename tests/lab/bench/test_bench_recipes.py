"""The committed recipes describe studies, and run on a CPU when their networks are made tiny."""

import dataclasses
from pathlib import Path

import pytest

from lab.bench import study as module
from lab.bench.recipe import BenchRecipe
from lab.bench.study import Study, settings
from lab.bench.study_axis import AXES
from lab.bench.study_file import StudyFile
from lab.bench.workload import MeasuredWorkload
from revformers.training.recipe_file import read_recipe
from tests.lab.bench.example import MeasureHere

DIRECTORY = Path(__file__).parents[3] / "recipes/bench"
STUDIES = {
    "table3.yaml": "batch",
    "table4.yaml": "depth",
    "cpu-table4.yaml": "depth",
    "cpu-time.yaml": "batch",
    "cpu-length.yaml": "budget",
    "cpu-rivals.yaml": "budget",
    "cpu-states.yaml": "depth",
    "gpu-rivals.yaml": "budget",
    "long-context-8b.yaml": "length",
}
SMALL = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_positions": 64},
}


def test_every_recipe_is_tried():
    assert {path.name for path in DIRECTORY.iterdir()} == set(STUDIES)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "axis"), STUDIES.items())
def test_a_recipe_runs_on_a_tiny_network(name, axis, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MeasuringProcess", MeasureHere)
    as_it_is = read_recipe(BenchRecipe(), DIRECTORY / name)
    layers = "n_layer" if as_it_is.model.architecture == "gpt2" else "num_hidden_layers"
    small = {**SMALL[as_it_is.model.architecture], "vocab_size": 32, layers: 2}
    overrides = {f"model.config.{key}": value for key, value in small.items()} | {
        "device": "cpu",
        "arms": [arm for arm in as_it_is.arms if arm != "plain_offload"],
        "batch_size": 1,
        "sequence_length": 32,
        "length_unit": 16,
        "rounds": min(as_it_is.rounds, 1),
        "warm_up_rounds": 0,
        "rounds_at_largest": min(as_it_is.rounds_at_largest, 1),
        "memory": ["1MB"] if as_it_is.memory else [],
        "tolerance": 0.2,
        **{field: [2] for field in ("depths", "batch_sizes") if getattr(as_it_is, field)},
        **({"sequence_lengths": [32]} if as_it_is.sequence_lengths else {}),
    }
    recipe = read_recipe(BenchRecipe(), DIRECTORY / name, overrides)
    file = StudyFile(tmp_path / "result.json", settings(AXES[axis], recipe), ["bench"])
    result = Study(AXES[axis], recipe, file).run()
    assert result["finished"]
    assert {row["arm"] for row in result["points"]} == set(recipe.arms)
    rebuilt = [row for row in result["points"] if row["arm"].startswith("rebuild")]
    assert all(row["fits"] for row in rebuilt)
    assert bool(rebuilt[-1]["memory"]) == bool(recipe.memory)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("table3.yaml", 774e6), ("table4.yaml", None), ("long-context-8b.yaml", 8.03e9)],
)
def test_recipes_for_a_gpu_have_the_shape_they_say(name, parameters, monkeypatch):
    monkeypatch.setattr(MeasuredWorkload, "__post_init__", lambda self: None)
    workload = read_recipe(BenchRecipe(), DIRECTORY / name).workload()
    model = dataclasses.replace(workload, device="meta").build_model() if parameters else None
    assert model is None or model.num_parameters() == pytest.approx(parameters, rel=0.01)
    assert workload.device == "cuda"
    assert workload.head == "chunked"
    if name == "table4.yaml":
        assert (workload.width, workload.config.num_attention_heads) == (512, 8)
        assert read_recipe(BenchRecipe(), DIRECTORY / name).depths == (16, 32, 64, 96)
