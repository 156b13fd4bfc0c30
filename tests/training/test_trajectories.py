"""Trainings that rebuild activations and ones that store them are the same to the bit, step after step."""

import pytest
import torch
from transformers import LlamaForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

import revformers as rf
from tests.tiny_trainers import DYNAMICS, arguments, converted, dataset, lora, small, tokenizer, what_it_is

ROLLOUTS = {"num_generations": 2, "max_completion_length": 4}
TRAINERS = {
    "sft": (SFTTrainer, SFTConfig, {}),
    "dpo": (DPOTrainer, DPOConfig, {}),
    "kto": (KTOTrainer, KTOConfig, {}),
    "grpo": (GRPOTrainer, GRPOConfig, ROLLOUTS | {"beta": 0.1}),
    "rloo": (RLOOTrainer, RLOOConfig, ROLLOUTS),
    "reward": (RewardTrainer, RewardConfig, {}),
}
CASES = [(name, adapter) for name in TRAINERS for adapter in ("full", "lora")]


def reward(completions, **columns):
    return [float(len(set(text.split()))) + number / 8 for number, text in enumerate(completions)]


def network(name, activations, folder):
    """The converted network; of the reward trainer, a classifier of one label, which is not converted."""
    if name == "reward":
        config = small().config
        config.num_labels, config.pad_token_id = 1, 0
        torch.manual_seed(0)
        return rf.make_reversible(LlamaForSequenceClassification(config), DYNAMICS, activations)
    model = converted(folder)
    rf.set_activations(model, activations)
    return model


def trajectory(name, adapter, activations, steps, folder):
    """The loss and the gradient norm of every step, and the weights at the end."""
    kind, config, options = TRAINERS[name]
    model = network(name, activations, folder)
    expected = what_it_is(model)
    torch.manual_seed(0)
    task = {"task_type": "SEQ_CLS"} if name == "reward" else {}
    trainer = kind(
        model,
        args=arguments(folder / activations, config, max_steps=steps, learning_rate=1e-3, **options),
        train_dataset=dataset(name, rows=2 * steps),
        processing_class=tokenizer(),
        peft_config=lora(**task) if adapter == "lora" else None,
        **({"reward_funcs": reward} if name in ("grpo", "rloo") else {}),
    )
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    after = {key: value.detach() for key, value in trainer.model.named_parameters() if value.requires_grad}
    assert what_it_is(trainer.model) == expected
    assert sum(not torch.equal(before[key], after[key]) for key in before) > len(before) / 2
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry], after


def check(name, adapter, steps, folder):
    runs = [trajectory(name, adapter, activations, steps, folder) for activations in ("rebuild", "store")]
    (losses, weights), (expected, expected_weights) = runs
    assert len(set(losses)) == steps  # a loss that never moves would be equal whatever the gradients are
    assert losses == expected
    assert weights.keys() == expected_weights.keys()
    for key, value in weights.items():
        assert torch.equal(value, expected_weights[key]), key


@pytest.mark.parametrize(
    ("name", "adapter"), [("sft", "full"), ("dpo", "full"), ("dpo", "lora"), ("grpo", "full"), ("reward", "full")]
)
def test_four_steps_are_the_same_to_the_bit(name, adapter, tmp_path):
    check(name, adapter, 4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_twenty_steps_are_the_same_to_the_bit(name, adapter, tmp_path):
    check(name, adapter, 20, tmp_path)


def test_another_gradient_gives_another_trajectory(tmp_path, monkeypatch):
    """The comparison sees it where one number of one gradient is larger by a half in one step of four."""
    _, expected_weights = trajectory("sft", "full", "store", 4, tmp_path)
    step = torch.optim.AdamW.step
    steps = []

    def nudged(optimizer, *others, **options):
        steps.append(optimizer)
        # A bias or a norm, which all steps move: Adam takes no notice of the size of a gradient that comes once.
        if len(steps) == 2:
            weight = next(value for group in optimizer.param_groups for value in group["params"] if value.dim() == 1)
            weight.grad.view(-1)[weight.grad.abs().argmax()].mul_(1.5)
        return step(optimizer, *others, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", nudged)
    _, weights = trajectory("sft", "full", "rebuild", 4, tmp_path / "nudged")
    assert len(steps) == 4
    assert not all(torch.equal(value, expected_weights[key]) for key, value in weights.items())
