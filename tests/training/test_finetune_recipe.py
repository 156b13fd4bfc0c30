import pytest
import yaml

from revformers.errors import UserError
from revformers.training.finetune_recipe import load_finetune_recipe


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "name.yaml"
    path.write_text("model: {name: model}\ndata: {source: text.txt, columns: {prompt: a}}")
    return path


def test_to_dict_holds_what_load_finetune_recipe_reads(path):
    recipe = load_finetune_recipe(path)
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_finetune_recipe(path) == recipe


def test_the_source_of_text_is_read_as_for_pretraining(path):
    data = load_finetune_recipe(path, {"data.block_length": 64, "data.validation_fraction": 0.5}).data.source_section()
    assert (data.source, data.block_length, data.validation_fraction, data.streaming) == ("text.txt", 64, 0.5, False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss.head": "own", "loss.distillation": 1.0}, "loss.head must be chunked"),
        ({"loss.head": "own", "loss.cross_entropy": 0.5}, "loss.head must be chunked"),
        ({"loss.head": "own", "loss.chunk": 8}, "loss.chunk must be left out"),
        ({"loss.chunk": 0}, "loss.chunk must be at least 1"),
        ({"annealing.steps": 9, "training.max_steps": 9}, "annealing.steps must be below training.max_steps"),
        ({"data.block_length": 1}, "data.block_length must be at least 2"),
    ],
)
def test_values_that_do_not_go_together_are_refused(path, overrides, message):
    with pytest.raises(UserError, match=message):
        load_finetune_recipe(path, overrides)
