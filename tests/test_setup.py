import dataclasses

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from lab.bench.workload import llama_config
from revformers.activations import Budget, Rebuild, Store
from revformers.dynamics import Hamiltonian, Midpoint, Residual
from revformers.engine.state_format import StateFormat
from revformers.models.parts import require_reversible, update_predictors
from revformers.models.update_predictor import PredictorForm
from revformers.planning.model_size import meta_model
from revformers.setup import CHECKPOINT, ORDINARY_SETUPS, STORE, Setup, Workload, with_depth

QWEN3 = llama_config(4, 32, 13, 8) | {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 2}


def test_the_ordinary_network_is_told_from_others():
    assert all(setup.ordinary for setup in ORDINARY_SETUPS)
    assert not Setup(Midpoint(), STORE.activations).ordinary
    assert Setup(Midpoint(), Rebuild()) == Setup(Midpoint(), Rebuild()) != Setup(Midpoint(), CHECKPOINT.activations)


def test_a_setup_gives_its_states_to_the_model():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama_config(2, 32, 13, 8)))
    for states in (StateFormat(), StateFormat("int32", 14)):
        assert require_reversible(Setup(Midpoint(), Rebuild(), states).apply(model)).states == states


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setup(None, Rebuild()), "ordinary network has no activation policy rebuild"),
        (lambda: Setup(None, Budget("2GiB")), "ordinary network has no activation policy budget:2GiB"),
        (lambda: Setup(Residual(), Rebuild()), "no inverse"),
        (lambda: Setup(None, Store(), predictors=PredictorForm()), "no update predictors"),
        (
            lambda: Setup(Hamiltonian(), Rebuild(), predictors=PredictorForm()),
            "Update predictors correct steps by block",
        ),
        (lambda: Workload(llama_config(2, 32, 13, 8), optimizer="adam"), "no optimizer 'adam'"),
        (lambda: Workload(llama_config(2, 32, 13, 8), training="some"), "no training 'some'"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_workload_holds_a_configuration_as_it_was_given():
    values = llama_config(2, 32, 13, 8)
    config = AutoConfig.for_model(**values)
    assert Workload(config).config is config
    assert isinstance(Workload(values).with_layers(3).model_config, dict)
    assert Workload(config).with_layers(3).config.num_hidden_layers == 3
    assert config.num_hidden_layers == 2


def test_equal_workloads_are_one_key():
    workload = Workload(llama_config(2, 32, 13, 8))
    assert {workload: 1}[dataclasses.replace(workload)] == 1
    assert {workload: 1}.get(workload.with_layers(3)) is None


@pytest.mark.parametrize("layers", [2, 4, 7])
def test_a_changed_depth_has_a_type_for_every_layer(layers):
    config = AutoConfig.for_model(**QWEN3)
    own = AutoConfig.for_model(**QWEN3 | {"num_hidden_layers": layers})
    changed = with_depth(config, layers)
    assert changed.num_hidden_layers == layers
    assert changed.layer_types == own.layer_types
    assert len(config.layer_types) == 4


def test_a_setup_replaces_the_tiles_and_predictors_of_another():
    workload = Workload(llama_config(2, 32, 13, 8))
    model = meta_model(workload.config, 2, workload.dtype)
    Setup(Midpoint(), Rebuild(), predictors=PredictorForm(("state",)), mlp_tile=4).apply(model)
    assert [layer.mlp.tokens_in_tile for layer in model.model.layers] == [4, 4]
    assert [predictor.form.features for predictor in update_predictors(model)] == [("state",)] * 2
    STORE.apply(model)
    assert not any("tokens_in_tile" in vars(layer.mlp) for layer in model.model.layers)
    assert not update_predictors(model)
