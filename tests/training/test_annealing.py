from fractions import Fraction

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

import revformers as rf
from revformers.errors import UserError
from revformers.models.parts import reversible_stack, update_predictors
from revformers.training.annealing import Annealing
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama


def converted(bits=1.0):
    model = smooth_llama()
    rf.convert(model, bits, TEXT, allocation="uniform")
    return model


def test_the_blends_move_in_exact_fractions_from_the_start_to_the_target():
    model = rf.make_reversible(llama(layers=3), rf.BlendedMidpoint(["1/2", "1/4", -1]))
    annealing = Annealing(model, steps=4, start=1 / 256)
    assert annealing.blends(0) == [Fraction(1, 256), Fraction(1, 256), Fraction(-1, 256)]
    # 1/256 + (127, 63, 255)/256 * 2/4, to the nearest 1/256 (halves to even)
    assert annealing.blends(2) == [Fraction(64, 256), Fraction(32, 256), Fraction(-128, 256)]
    assert annealing.blends(4) == annealing.blends(99) == [Fraction(1, 2), Fraction(1, 4), Fraction(-1)]
    for step in range(4):
        annealing.set(step)
        dynamics = reversible_stack(model).dynamics
        assert [dynamics.layer_blend(layer) for layer in range(3)] == annealing.blends(step)
        assert all(blend.denominator <= 256 for blend in annealing.blends(step))


def test_a_target_below_the_start_is_kept():
    model = rf.make_reversible(llama(layers=3), rf.BlendedMidpoint("1/16"))
    assert Annealing(model, 4, 1 / 4).blends(0) == [Fraction(1, 16)] * 3


def test_the_options_of_the_dynamics_stay():
    model = rf.make_reversible(llama(), rf.BlendedMidpoint("1/2", 0.5, start="zero", readout="mean"))
    annealing = Annealing(model, 4, 1 / 256)
    annealing.set(1)
    dynamics = reversible_stack(model).dynamics
    assert (dynamics.step_size, dynamics.start, dynamics.readout) == (0.5, "zero", "mean")
    annealing.set(4)
    assert reversible_stack(model).dynamics == rf.BlendedMidpoint("1/2", 0.5, start="zero", readout="mean")


def test_step_sizes_that_were_fitted_begin_at_one():
    target = rf.BlendedMidpoint("1/2", (0.5, 0.8, 1.5))
    model = rf.make_reversible(llama(layers=3), target)
    annealing = Annealing(model, 4, 1 / 256)
    annealing.set(0)
    steps = reversible_stack(model).dynamics.step_size
    assert steps == pytest.approx([1 - 0.5 / 128, 1 - 0.2 / 128, 1 + 0.5 / 128])
    annealing.set(4)
    assert reversible_stack(model).dynamics == target


def test_a_model_that_was_evaluated_before_the_target_is_not_the_best():
    annealing = Annealing(rf.make_reversible(llama(), rf.BlendedMidpoint("1/2")), steps=2, start=1 / 256)
    state = TrainerState(best_metric=1.0, best_global_step=3, best_model_checkpoint="checkpoint-3")
    state.global_step = 3  # evaluated after the step of index 2
    annealing.on_step_begin(None, state, None)
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (1.0, 3, "checkpoint-3")
    state.global_step = 2
    annealing.on_step_begin(None, state, None)
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (None, None, None)


def test_the_predictors_are_scaled_with_their_blend_and_gradients_stay_exact():
    model = converted()
    annealing = Annealing(model, 8, 1 / 256)
    annealing.set(0)
    assert [predictor.scale for predictor in update_predictors(model)] == [1 / 128] * 6
    assert rf.verify_gradients(model, {"input_ids": TEXT[:2]}).bit_exact
    annealing.set(8)
    assert [predictor.scale for predictor in update_predictors(model)] == [1.0] * 6


def test_a_budget_stores_layers_although_the_blends_move():
    model = converted()
    annealing = Annealing(model, 3, 1 / 256)
    observed = []
    for number in range(4):
        annealing.set(number)
        gradients = []
        for policy in (rf.Store(), rf.Budget("1GiB")):
            rf.set_activations(model, policy)
            loss = model(input_ids=TEXT[:2], labels=TEXT[:2]).loss
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        assert all(map(torch.equal, *gradients))
        observed.append(rf.budget_report(model).observed)
        assert rf.budget_report(model).stored == (0 if observed[-1] else 6)
    assert observed == [True, False, False, False]


def test_the_start_is_nearly_the_ordinary_network():
    original, model = smooth_llama(), converted(0)
    with torch.no_grad():
        expected, target = original(TEXT).logits, model(TEXT).logits
        Annealing(model, 8, 1 / 256).set(0)
        start = model(TEXT).logits
    assert (start - expected).abs().mean() < 0.2 * (target - expected).abs().mean()


@pytest.mark.thorough
def test_the_trainer_sets_it_at_every_step_and_leaves_the_target(tmp_path):
    model = converted()
    annealing = Annealing(model, 3, 1 / 256)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(reversible_stack(model).dynamics.layer_blend(0))

    arguments = TrainingArguments(str(tmp_path), max_steps=3, save_steps=1, report_to="none", use_cpu=True)
    data = [{"input_ids": row, "labels": row} for row in TEXT]
    Trainer(model, arguments, train_dataset=data, callbacks=[annealing, Watch()]).train()
    assert seen == [annealing.blends(step)[0] for step in range(3)]
    assert seen[0] == Fraction(1, 256)
    assert reversible_stack(model).dynamics.layer_blend(0) == Fraction(1, 2)
    checkpoint = rf.from_pretrained(tmp_path / "checkpoint-1")
    assert reversible_stack(checkpoint).dynamics == reversible_stack(model).dynamics


def test_dynamics_without_blends_are_refused():
    with pytest.raises(UserError, match=r"needs dynamics with blends, and midpoint has none"):
        Annealing(rf.make_reversible(llama(), rf.Midpoint()), 3, 1 / 256)
