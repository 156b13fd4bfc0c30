import pytest
import yaml

from revformers.data.section import DataSection
from revformers.errors import UserError
from revformers.training.finetune_recipe import ConversionSection
from revformers.training.recipe import (
    DynamicsSection,
    HeadSection,
    ModelSection,
    SampleSection,
    TrainingSection,
    load_recipe,
)


def test_to_dict_holds_what_load_recipe_reads(tmp_path):
    path = tmp_path / "name.yaml"
    path.write_text("sample: {prompts: [a, b]}\nmodel: {config: {hidden_size: 8}}")
    recipe = load_recipe(path)
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainingSection, {"max_steps": 0}, "training.max_steps must be at least 1, not 0"),
        (TrainingSection, {"learning_rate": -1.0}, "training.learning_rate must be at least 0, not -1"),
        (TrainingSection, {"seed": 5000000000}, "training.seed must be 0 to 4294967295, not 5000000000"),
        (ModelSection, {"seed": -1}, "model.seed must be 0 to 4294967295, not -1"),
        (SampleSection, {"seed": 2**32}, "sample.seed must be 0 to 4294967295, not 4294967296"),
        (DataSection, {"validation_blocks": 0}, "data.validation_blocks must be at least 1, not 0"),
        (HeadSection, {"head": "own", "chunk": 2}, "loss.chunk must be left out with loss.head own, not 2"),
        (DynamicsSection, {"states": "int16"}, "dynamics.states: There are no states 'int16'"),
        (ConversionSection, {"states": "auto:30"}, "conversion.states: 32-bit states have 8 to 24"),
        (SampleSection, {"temperature": -1.0}, "sample.temperature must be at least 0"),
    ],
)
def test_a_section_refuses_values_out_of_range_out_of_range(section, values, message):
    with pytest.raises(UserError, match=message):
        section(**values)
