import pytest
import torch
from peft import LoraConfig, get_peft_model

import revformers as rf
from revformers.models.attach import add_update_predictors
from revformers.models.parts import (
    predictor_weights,
    record_provenance,
    require_reversible,
    reversible_stack,
    update_predictors,
)
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import PredictorForm
from tests.test_reversible import llama


def test_what_is_reversible_is_known_also_inside_an_adapter():
    model = llama(layers=2)
    assert reversible_stack(model) is None
    with pytest.raises(ValueError, match="LlamaForCausalLM is an ordinary network"):
        require_reversible(model)
    rf.make_reversible(model, rf.Leapfrog())
    stack = reversible_stack(model)
    assert stack.dynamics == rf.Leapfrog()
    assert require_reversible(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))) is stack


def test_predictors_of_adapters_are_not_the_models():
    model = rf.make_reversible(llama(layers=2), rf.BlendedMidpoint("1/2"))
    assert (update_predictors(model), predictor_weights(model)) == ([], {})
    own = add_update_predictors(model, PredictorForm(("state", "update"), rank=2))
    own[1].bias.data.fill_(3.0)
    expected = predictor_weights(model)
    assert sorted(expected) == sorted(
        f"{layer}.{name}" for layer in (0, 1) for name in ("bias", "maps.0.weight", "maps.1.weight", "output.weight")
    )
    assert expected["1.bias"].tolist() == [3.0] * 32
    config = LoraConfig(r=2, target_modules=["q_proj", "maps.0"], modules_to_save=["output"])
    adapted = get_peft_model(model, config)
    found = predictor_weights(adapted)
    assert all(torch.equal(found[name], value) for name, value in expected.items() if "output" not in name)
    assert update_predictors(adapted) == own


def test_facts_are_added_to_those_that_are_known():
    model = rf.make_reversible(llama(layers=2), rf.Midpoint())
    record_provenance(model, Provenance(made_by="one"))
    record_provenance(model, Provenance(calibration_tokens=7))
    assert reversible_stack(model).provenance == Provenance(made_by="one", calibration_tokens=7)
    with pytest.raises(ValueError, match="ordinary network"):
        record_provenance(llama(layers=1), Provenance())
