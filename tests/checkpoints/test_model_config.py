import copy

import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import revformers as rf
from revformers.checkpoints.model_class import reversible_class
from revformers.checkpoints.model_config import identity_of
from revformers.errors import ModelFilesError
from revformers.models.parts import reversible_stack
from tests.checkpoints.test_model_class import DYNAMICS, config, same, with_head


def test_a_configuration_class_that_transformers_does_not_know_is_named(tmp_path):
    own_config = type("OwnConfig", (LlamaConfig,), {"model_type": "own_llama", "_auto_class": "AutoConfig"})
    own_model = type("OwnModel", (LlamaForCausalLM,), {"config_class": own_config})
    model = rf.make_reversible(own_model(own_config(**vars(config()) | {"model_type": "own_llama"})), DYNAMICS)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for load in (AutoModelForCausalLM.from_pretrained, rf.from_pretrained, reversible_class(own_model).from_pretrained):
        with pytest.raises(ModelFilesError, match=r"AutoConfig.register\('own_llama', YourConfig\)"):
            load(tmp_path)
    AutoConfig.register("own_llama", own_config)
    try:
        assert same(reversible_class(own_model).from_pretrained(tmp_path), model)
    finally:
        CONFIG_MAPPING._extra_content.pop("own_llama")


def test_a_peft_model_has_the_configuration_of_the_reversible_model_in_it():
    model = get_peft_model(LlamaForCausalLM(config()), LoraConfig(target_modules="all-linear"))
    rf.make_reversible(model, DYNAMICS)
    assert model.config is model.get_base_model().config
    assert identity_of(model.config) is reversible_stack(model)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda own: config()], ids=["copied", "ordinary"])
def test_a_configuration_that_takes_the_place_of_another_says_what_the_model_is(make):
    model = with_head("LlamaForCausalLM")
    model.config = replaced = make(model.config)
    assert model.config is replaced
    assert identity_of(model.config) is reversible_stack(model)


def test_the_configuration_of_another_reversible_model_that_is_taken_over_stays_what_it_is():
    giver, model = rf.make_reversible(LlamaForCausalLM(config()), rf.Midpoint()), with_head("LlamaForCausalLM")
    model.config = giver.config
    assert identity_of(model.config) is reversible_stack(model)
    assert identity_of(giver.config) is reversible_stack(giver)


def test_a_configuration_that_is_saved_alone_is_marked(tmp_path):
    model = with_head("LlamaForCausalLM")
    model.config.save_pretrained(tmp_path)
    assert reversible_stack(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))).dynamics == DYNAMICS
    # In memory it is the family's own, by which adapters and trainers look things up.
    assert model.config.to_dict()["model_type"] == "llama"
    assert type(model).__name__ == "LlamaForCausalLM"


def test_an_activation_policy_that_is_no_text_is_refused(tmp_path):
    with_head("LlamaForCausalLM").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"activations": "rebuild"', '"activations": {"a": 1}'))
    with pytest.raises(ModelFilesError, match="activations is text"):
        rf.from_pretrained(tmp_path)
