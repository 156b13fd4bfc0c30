"""Every network that a trainer of TRL holds is the one that the user made, whatever way that came about."""

import contextlib
import copy
import math
import sys
import warnings

import pytest
import torch
import trl.trainer.base_trainer as trl_base
import trl.trainer.utils as trl_utils
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, Trainer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

import revformers as rf
from revformers.models.parts import reversible_stack
from revformers.private_api import TRL_MAKES_REFERENCES, TRL_NAMES_MODELS
from revformers.training.trl import extend_references
from tests.tiny_trainers import (
    ADAPTERS,
    DYNAMICS,
    IDS,
    WAYS,
    arguments,
    class_name,
    dataset,
    logits,
    lora,
    make,
    ordinary,
    saved,
    tokenizer,
    what_it_is,
    with_adapter,
)

ROLLOUTS = {"num_generations": 2, "max_completion_length": 4}
TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig, {}),
    "kto": (KTOTrainer, KTOConfig, {}),
    "grpo": (GRPOTrainer, GRPOConfig, ROLLOUTS | {"beta": 0.1}),
    "rloo": (RLOOTrainer, RLOOConfig, ROLLOUTS),
}
FAST = [
    *(("dpo", way, "full") for way in WAYS),
    *((name, "memory", "full") for name in ("kto", "grpo", "rloo")),
    ("dpo", "path", "peft_config"),
    ("dpo", "converted", "peft_model"),
    ("kto", "trained", "peft_config"),
    ("grpo", "converted", "peft_config"),
    ("grpo", "memory", "peft_model"),
    ("rloo", "path", "full"),
]
ALL = [
    (name, way, adapter)
    for name in TRAINERS
    for way in WAYS
    for adapter in ADAPTERS
    if (way, adapter) != ("path", "peft_model")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def trainer_of(name, model, tmp_path, peft_config=None, **options):
    kind, config, own = TRAINERS[name]
    rewarded = {"reward_funcs": reward} if name in ("grpo", "rloo") else {}
    return kind(
        model,
        args=arguments(tmp_path, config, **own | options),
        train_dataset=dataset(name),
        processing_class=tokenizer(),
        peft_config=peft_config,
        **rewarded,
    )


def reward(completions, **columns):
    return [float(number) for number in range(len(completions))]


@contextlib.contextmanager
def reference(trainer):
    """The network that the trainer compares with: its own, or the trained one under the first adapter or without."""
    if trainer.ref_model is not None:
        yield trainer.ref_model
    elif "ref" in trainer.model.peft_config:
        trainer.model.set_adapter("ref")
        yield trainer.model
        trainer.model.set_adapter("default")
    else:
        with trainer.model.disable_adapter():
            yield trainer.model


def check_first_step(name, trainer):
    """No reference is another network, so the first step sees no difference from it."""
    loss = trainer.train().training_loss
    logged = trainer.state.log_history[0]
    if name == "dpo":
        assert loss == pytest.approx(math.log(2), abs=1e-6)
    else:
        assert logged["kl"] == pytest.approx(0, abs=1e-6)
    if name == "kto":
        assert loss == pytest.approx(0.5, abs=1e-6)
    assert logged["grad_norm"] > 0


def check(name, way, adapter, folder, tmp_path):
    model = make(way, folder)
    network = rf.from_pretrained(model) if way == "path" else model
    expected, kind = what_it_is(network), class_name(network)
    if adapter == "peft_model":
        model = network = with_adapter(model)
    before = logits(network)
    trainer = trainer_of(name, model, tmp_path, lora() if adapter == "peft_config" else None)
    assert (trainer.ref_model is None) == (adapter != "full")
    for held in filter(None, (trainer.model, trainer.ref_model)):
        assert what_it_is(held) == expected
        assert class_name(held) == kind
        assert torch.equal(logits(held), before)
    with reference(trainer) as network:
        assert torch.equal(logits(network), before)
    check_first_step(name, trainer)
    with reference(trainer) as network:
        assert torch.equal(logits(network), before)
    assert not torch.equal(logits(trainer.model), before)


@pytest.mark.parametrize(("name", "way", "adapter"), FAST)
def test_a_trainer_holds_the_network_that_it_was_given(name, way, adapter, folder, tmp_path):
    check(name, way, adapter, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way", "adapter"), [case for case in ALL if case not in FAST])
def test_every_trainer_holds_the_network_that_it_was_given(name, way, adapter, folder, tmp_path):
    check(name, way, adapter, folder, tmp_path)


def test_without_the_extension_the_reference_is_another_network(folder, tmp_path, monkeypatch):
    for module in [module for name, module in sys.modules.items() if name.startswith("trl.trainer.")]:
        for function in {TRL_MAKES_REFERENCES, TRL_NAMES_MODELS} & vars(module).keys():
            monkeypatch.setattr(module, function, getattr(module, function).__wrapped__)
    model = make("memory", folder)
    trainer = trainer_of("dpo", model, tmp_path)
    assert reversible_stack(trainer.ref_model) is None
    assert abs(trainer.train().training_loss - math.log(2)) > 1e-3


def test_the_reference_of_an_ordinary_model_is_left_to_trl(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(ordinary(folder / "ordinary"))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # TRL reads the reference from the path all the same
    trainer = trainer_of("dpo", model, tmp_path)
    assert reversible_stack(trainer.ref_model) is None
    assert not torch.equal(logits(trainer.ref_model), logits(model))


def test_a_configuration_without_its_model_makes_no_reference(folder):
    name = trl_utils.get_config_model_id(copy.deepcopy(make("memory", folder).config))
    assert name == str(ordinary(folder / "ordinary"))
    with pytest.raises(ValueError, match="pass ref_model"):
        trl_utils.create_model_from_path(name)


@pytest.mark.parametrize("kind", [Trainer, trl_base._BaseTrainer])
def test_the_description_is_added_once_to_a_card(kind):
    ordinary_card = vars(kind)["create_model_card"].__wrapped__
    assert ordinary_card.__module__ == kind.__module__
    assert not hasattr(ordinary_card, "__wrapped__")


def test_a_blocked_module_of_trl_does_not_stop_the_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.blocked", None)
    before = getattr(trl_utils, TRL_MAKES_REFERENCES)
    extend_references(trl_utils)
    assert getattr(trl_utils, TRL_MAKES_REFERENCES) is before


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_a_model_whose_configuration_was_replaced_has_itself_as_reference(name, folder, tmp_path):
    model = make("memory", folder)
    model.config = copy.deepcopy(model.config)
    copy.copy(model)
    trainer = trainer_of(name, model, tmp_path)
    assert torch.equal(logits(trainer.ref_model), logits(model))
    check_first_step(name, trainer)


def test_two_models_of_one_configuration_have_their_own_references(folder, tmp_path):
    config = AutoConfig.from_pretrained(ordinary(folder / "ordinary"))
    model, reversible = LlamaForCausalLM(config), LlamaForCausalLM(config)
    rf.make_reversible(reversible, DYNAMICS)
    assert reversible_stack(trainer_of("dpo", model, tmp_path).ref_model) is None
    assert what_it_is(trainer_of("dpo", reversible, tmp_path).ref_model) == what_it_is(reversible)


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_a_synchronised_reference_stays_reversible_and_gets_the_weights(name, folder, tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0, "max_steps": 2}
    trainer = trainer_of(name, make("converted", folder), tmp_path, **options)
    expected, before = what_it_is(trainer.model), logits(trainer.ref_model)
    trainer.train()
    assert what_it_is(trainer.model) == what_it_is(trainer.ref_model) == expected
    for own, other in zip(trainer.model.parameters(), trainer.ref_model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(logits(trainer.model), logits(trainer.ref_model))
    assert not torch.equal(logits(trainer.model), before)


def test_a_reference_that_is_handed_over_is_taken(folder, tmp_path):
    model, given = make("memory", folder), make("converted", folder)
    trainer = DPOTrainer(
        model,
        given,
        arguments(tmp_path, DPOConfig),
        train_dataset=dataset("dpo"),
        processing_class=tokenizer(),
    )
    assert trainer.ref_model is given
    assert what_it_is(given) != what_it_is(model)
    with pytest.warns(UserWarning, match="The ref_model of this DPOTrainer is a reversible network .* differ before"):
        trainer.train()


def test_an_ordinary_reference_is_taken_with_a_warning(folder, tmp_path):
    model, given = make("memory", folder), AutoModelForCausalLM.from_pretrained(ordinary(tmp_path / "ordinary"))
    options = {"train_dataset": dataset("dpo"), "processing_class": tokenizer()}
    with pytest.warns(UserWarning, match="The ref_model of this DPOTrainer is an ordinary network"):
        DPOTrainer(model, given, arguments(tmp_path, DPOConfig), **options).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The ref_model")
        DPOTrainer(make("memory", folder), None, arguments(tmp_path, DPOConfig), **options).train()


def test_the_second_trainer_of_a_model_starts_from_what_the_first_one_left(folder, tmp_path):
    model = make("memory", folder)
    trainer_of("dpo", model, tmp_path / "first").train()
    trained = logits(model)
    trainer = trainer_of("dpo", model, tmp_path / "second")
    assert torch.equal(logits(trainer.ref_model), trained)
    check_first_step("dpo", trainer)


def test_the_reference_has_the_dtype_that_the_arguments_ask_for(folder, tmp_path):
    trainer = trainer_of("dpo", make("memory", folder), tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    assert {parameter.dtype for parameter in trainer.ref_model.parameters()} == {torch.bfloat16}
    assert trainer.model.dtype == torch.float32
    assert what_it_is(trainer.ref_model) == what_it_is(trainer.model)


def test_reference_log_probabilities_computed_before_training_are_those_of_the_network(folder, tmp_path):
    trainer = trainer_of("dpo", make("converted", folder), tmp_path, precompute_ref_log_probs=True)
    check_first_step("dpo", trainer)


@pytest.mark.parametrize("kind", ["SFTTrainer", "DPOTrainer"])
def test_a_saved_network_is_trained_from_its_path_saved_and_loaded_again(kind, folder, tmp_path):
    trainer_kind, config = {"SFTTrainer": (SFTTrainer, SFTConfig), "DPOTrainer": (DPOTrainer, DPOConfig)}[kind]
    trainer = trainer_kind(
        str(saved(folder / "saved")),
        args=arguments(tmp_path, config),
        train_dataset=dataset("sft" if kind == "SFTTrainer" else "dpo"),
        processing_class=tokenizer(),
    )
    assert reversible_stack(trainer.model).dynamics == DYNAMICS
    trainer.train()
    trainer.save_model(tmp_path / "again")
    for load in (rf.from_pretrained, AutoModelForCausalLM.from_pretrained):
        assert torch.equal(load(tmp_path / "again")(IDS).logits, logits(trainer.model))
