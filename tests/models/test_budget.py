"""Budgets on models of transformers."""

import contextlib

import pytest
import torch

import revformers as rf
from revformers.models.parts import reversible_stack
from tests.tiny_models import batch, tiny

DYNAMICS = [rf.Midpoint(), rf.BlendedMidpoint("1/4"), rf.Hamiltonian()]
each_dynamics = pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.name)
each_recompute = pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
SHARES = (1.0, 1.5, 3.0, 8.0, 12.0, 100.0)


def step(model, activations, autocast=False):
    """The loss and the gradient of every trained parameter."""
    rf.set_activations(model, activations)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
        if isinstance(activations, rf.Budget):
            model(**batch(model))  # the first pass of a batch shape is observed, and stores no layer
        torch.manual_seed(1)
        loss = model(**batch(model)).loss
    return [loss, *torch.autograd.grad(loss, trained, allow_unused=True)]


def equal(left, right):
    return all(
        one is other or (one is not None and other is not None and torch.equal(one, other))
        for one, other in zip(left, right, strict=True)
    )


def budgets(model, recompute):
    smallest = rf.smallest_budget(model, *batch(model)["input_ids"].shape, recompute)
    return [rf.Budget(int(share * smallest), recompute) for share in SHARES]


def check(model, recompute, autocast=False):
    """Compare all budgets with storing; return their reports."""
    stored, reports = step(model, "store", autocast), []
    for budget in budgets(model, recompute):
        assert equal(step(model, budget, autocast), stored), str(rf.budget_report(model))
        reports.append(rf.budget_report(model))
        assert reports[-1].kept <= budget.size
    assert reports[0].stored == 0
    assert reports[-1].stored == reports[-1].layers
    return reports


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@each_dynamics
@each_recompute
def test_every_budget_gives_the_stored_gradients_to_the_bit(family, dynamics, recompute):
    model = rf.make_reversible(tiny(family, num_hidden_layers=6), dynamics)
    reports = check(model, recompute)
    assert (
        reports[0].kept == reports[0].budget == rf.smallest_budget(model, *batch(model)["input_ids"].shape, recompute)
    )
    assert any(report.attention_kept for report in reports)


@pytest.mark.thorough
@each_recompute
@pytest.mark.parametrize(
    ("options", "autocast"),
    [({"dropout": 0.1}, False), ({"dtype": torch.bfloat16}, False), ({}, True), ({"lora": True}, False)],
    ids=["dropout", "bfloat16", "autocast", "LoRA"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_as_it_is_done(family, recompute, options, autocast):
    check(
        rf.make_reversible(tiny(family, num_hidden_layers=6, **options), rf.BlendedMidpoint("1/4")), recompute, autocast
    )


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["gemma3", "qwen3_moe", "gpt_oss", "gpt_neox"])
def test_other_families(family):
    check(rf.make_reversible(tiny(family), rf.Midpoint()), "rebuild")


@pytest.mark.thorough
@pytest.mark.parametrize("autocast", [False, True])
def test_dynamics_that_evaluate_attention_twice_a_step(autocast):
    check(rf.make_reversible(tiny("llama"), rf.TwoEvaluationMidpoint("1/4")), "rebuild", autocast)


def test_the_ordinary_recurrence_is_checkpointed_within_a_budget():
    check(rf.make_reversible(tiny("llama"), rf.Residual(), "store"), "checkpoint")


def test_eager_attention_has_no_outputs_to_keep_and_the_report_says_so():
    model = rf.make_reversible(tiny("llama", attn_implementation="eager"), rf.Midpoint())
    reports = check(model, "rebuild")
    assert not any(report.attention_kept for report in reports)
    assert "without a fused attention kernel" in str(reports[0])


def test_a_budget_is_saved_and_loaded_with_the_model(tmp_path):
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), rf.Budget("20MiB"))
    model.save_pretrained(tmp_path)
    loaded = rf.from_pretrained(tmp_path)
    assert reversible_stack(loaded).activations == rf.Budget("20MiB")


def test_gradients_are_verified_on_a_model_with_a_budget():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), rf.Budget("20MiB"))
    assert rf.verify_gradients(model, batch(model)).bit_exact
    assert reversible_stack(model).activations == rf.Budget("20MiB")


def test_mistakes_are_one_sentence():
    model = tiny("llama")
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.smallest_budget(model, 1, 8)
    with pytest.raises(ValueError, match="has no inverse"):
        rf.make_reversible(model, rf.Residual(), rf.Budget("1GiB"))
    rf.make_reversible(model, rf.Midpoint())
    with pytest.raises(ValueError, match="No forward pass with gradients has run under a Budget"):
        rf.budget_report(model)
    with pytest.raises(ValueError, match="such as 24GiB"):
        rf.set_activations(model, "budget:plenty")
    rf.set_activations(model, "budget:1MB")
    with pytest.raises(ValueError, match="rebuilding or checkpointing alone keeps"):
        model(input_ids=torch.zeros(100, 20, dtype=torch.long))


def test_a_policy_that_was_set_aside_goes_on_where_it_was():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), rf.Budget("1GiB"))
    for policy, observed in ((rf.Budget("1GiB"), True), (rf.Budget("2GiB"), True), (rf.Budget("1GiB"), False)):
        rf.set_activations(model, policy)
        model(**batch(model))
        assert rf.budget_report(model).observed == observed
        assert rf.verify_gradients(model, batch(model)).bit_exact
    reversible_stack(model).dynamics = rf.Midpoint(granularity="branch")
    model(**batch(model))
    assert rf.budget_report(model).observed, "other steps take other memory"


def test_a_byte_is_not_the_whole_of_the_free_memory_although_both_are_one():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), rf.Budget(1.0))
    model(**batch(model))
    rf.set_activations(model, rf.Budget(1))
    with pytest.raises(ValueError, match="A budget of 1 bytes is too small"):
        model(**batch(model))
