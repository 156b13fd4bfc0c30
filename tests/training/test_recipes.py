"""The recipes that the project ships."""

from pathlib import Path

import pytest
import yaml

from revformers import Leapfrog
from revformers.training import model as model_module
from revformers.training.finetune import finetune_arguments
from revformers.training.finetune_data import FinetuneData
from revformers.training.finetune_recipe import load_finetune_recipe
from revformers.training.model import build_config, build_dynamics
from revformers.training.pretrain import training_arguments
from revformers.training.recipe import load_recipe

DIRECTORY = Path(__file__).parents[2] / "recipes"
PATHS = sorted(DIRECTORY.glob("*.yaml"))
FINETUNING = [path for path in PATHS if "conversion" in yaml.safe_load(path.read_text(encoding="utf-8"))]
RECIPES = [path.name for path in PATHS if path not in FINETUNING]


class Gpt2Tokenizer:
    """What `build_config` asks of GPT-2's tokenizer, which is on the hub."""

    bos_token_id = eos_token_id = 50256
    pad_token_id = None

    def __len__(self):
        return 50257


def test_the_recipes_are_there():
    assert {"quickstart.yaml", "gpt2-small-openwebtext.yaml", "gpt2-large-openwebtext.yaml"} <= set(RECIPES)
    assert {path.name for path in FINETUNING} >= {"heal-wikitext.yaml", "lora-instructions.yaml"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_describes_a_model_and_a_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr(model_module, "load_tokenizer", lambda name: Gpt2Tokenizer())
    # Autocast to bfloat16 is refused on a processor unless the run is kept on it.
    recipe = load_recipe(DIRECTORY / name, {"training.arguments.use_cpu": True, "output": str(tmp_path)})
    config = build_config(recipe)
    dynamics = build_dynamics(recipe.dynamics)
    dynamics.check(config.num_hidden_layers)
    assert dynamics.reversible or recipe.dynamics.activations != "rebuild"
    assert training_arguments(recipe).max_steps == recipe.training.max_steps


@pytest.mark.parametrize("path", FINETUNING, ids=lambda path: path.name)
def test_every_recipe_for_fine_tuning_describes_a_run(path, tmp_path):
    recipe = load_finetune_recipe(path, {"training.arguments.use_cpu": True, "output": str(tmp_path)})
    assert recipe.model.name
    assert recipe.conversion.bits is None or 0 <= recipe.conversion.bits <= 8
    form = "prompt_completion" if recipe.data.columns else "text"
    assert finetune_arguments(recipe, FinetuneData(form, [], [])).max_steps == recipe.training.max_steps


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [("gpt2-small-openwebtext.yaml", 12, 768, 12), ("gpt2-large-openwebtext.yaml", 36, 1280, 20)],
)
def test_the_models_of_the_paper(name, layers, width, heads, monkeypatch):
    monkeypatch.setattr(model_module, "load_tokenizer", lambda name: Gpt2Tokenizer())
    recipe = load_recipe(DIRECTORY / name)
    config = build_config(recipe)
    assert (config.n_layer, config.n_embd, config.n_head) == (layers, width, heads)
    assert (config.vocab_size, config.n_positions, recipe.data.block_length) == (50257, 1024, 1024)
    assert isinstance(build_dynamics(recipe.dynamics), Leapfrog)
