import pytest
import torch

import revformers as rf
from revformers.engine.states import StatePair
from revformers.models.deterministic_kernels import kernels_are_deterministic
from revformers.models.parts import require_reversible
from tests.models.varying_kernels import varying_backward
from tests.models.wrong_policies import Detached
from tests.test_reversible import llama
from tests.tiny_models import batch, tiny

BATCH = {"input_ids": torch.arange(20).view(2, 10)}


def test_an_exact_model_is_reported_exact_and_left_as_it_was():
    model = rf.make_reversible(llama(attention_dropout=0.1), rf.Midpoint(), "checkpoint").train()
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    random_state = torch.get_rng_state()
    report = rf.verify_gradients(model, BATCH)
    assert report.bit_exact
    assert report.max_relative_error == 0
    assert report.parameters == len(before)
    assert report.entries == model.num_parameters()
    assert report.loss == report.rebuilt_loss > 0
    assert "to the bit" in str(report)
    assert model.model.layers[0]._reversible_role.stack.activations == rf.Checkpoint()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is before[name] for name, parameter in model.named_parameters())


def test_wrong_gradients_are_reported_with_their_names_and_size(monkeypatch):
    model = rf.make_reversible(llama(), rf.Midpoint())
    retreat = StatePair.retreat

    def corrupt(self, *arguments):
        retreat(self, *arguments)
        self.current[0, 0, 0] += 1 << 28

    # Without its self-check the tape gives wrong gradients, and the comparison has to see them.
    monkeypatch.setattr(StatePair, "retreat", corrupt)
    monkeypatch.setattr("revformers.engine.proof.verdicts.Verdicts.add", lambda *_: None)
    report = rf.verify_gradients(model, BATCH)
    assert not report.bit_exact
    assert report.max_relative_error > 1e-6
    assert any(name.startswith("model.layers.0.") for name in report.differing)
    assert "DIFFER" in str(report)


@pytest.mark.parametrize("lacks", ["rebuild", "store"])
def test_a_gradient_that_one_of_the_two_lacks_is_named(lacks):
    model = rf.make_reversible(llama(), rf.Midpoint())

    def loss(output):
        return output.loss if rf.describe(model).activations != lacks else model.model.norm.weight.sum()

    report = rf.verify_gradients(model, BATCH | {"labels": BATCH["input_ids"]}, loss=loss)
    assert not report.bit_exact
    assert report.decided
    assert "model.layers.0.mlp.up_proj.weight" in report.differing
    assert report.max_relative_error > 0


def test_kernels_that_vary_in_the_backward_pass_are_replaced_by_deterministic_ones(monkeypatch):
    report = rf.verify_gradients(varying_backward(monkeypatch, rf.make_reversible(llama(), rf.Midpoint())), BATCH)
    assert report.bit_exact
    assert report.decided
    assert report.kernels == "deterministic"
    # What the hook changes reaches the projection itself and what is below it, and nothing above.
    assert "model.layers.2.self_attn.o_proj.weight" in report.varying
    assert not any(name.startswith("model.layers.3.") for name in report.varying)
    assert report.differing == ()
    assert "two passes with stored activations differ in" in str(report)
    assert "PyTorch's deterministic ones" in str(report)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_varied_in_the_first_pass_alone_is_not_taken_for_a_wrong_gradient(monkeypatch):
    """Sums of few terms come in the same order most times, so two stored passes may agree by chance."""
    model = varying_backward(monkeypatch, rf.make_reversible(llama(), rf.Midpoint()), only_first_varies=True)
    report = rf.verify_gradients(model, BATCH)
    assert report.bit_exact
    assert report.kernels == "deterministic"
    assert report.varying == ()
    assert "PyTorch's deterministic ones, because with the usual ones the gradients differ" in str(report)


def test_without_a_deterministic_form_and_without_variation_a_difference_is_one(monkeypatch):
    model = rf.make_reversible(llama(), rf.Midpoint())
    report = rf.verify_gradients(varying_backward(monkeypatch, model, False, only_first_varies=True), BATCH)
    assert not report.bit_exact
    assert report.decided
    assert report.kernels == "as set"
    assert report.missing == ""


def test_attention_whose_only_allowed_kernel_is_not_deterministic_leaves_the_comparison_undecided(monkeypatch):
    """As that of cuDNN, which PyTorch's deterministic mode refuses in other words than other operations."""
    model = varying_backward(monkeypatch, rf.make_reversible(llama(), rf.Midpoint()))

    def refuse(module, arguments):
        if kernels_are_deterministic():
            raise RuntimeError("No available kernel. Aborting execution.")

    model.model.layers[1].self_attn.register_forward_pre_hook(refuse)
    report = rf.verify_gradients(model, BATCH)
    assert not report.decided
    assert report.missing == "scaled_dot_product_attention"


class NanGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN where it was largest."""

    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient.masked_fill(gradient == gradient.max(), torch.nan)


def with_nan_gradient(model):
    model.model.norm.register_forward_hook(lambda module, arguments, output: NanGradient.apply(output))
    return model


def test_a_nan_in_the_same_place_of_both_gradients_is_no_difference():
    model = with_nan_gradient(rf.make_reversible(llama(), rf.Midpoint()))
    report = rf.verify_gradients(model, BATCH)
    assert report.bit_exact
    assert report.kernels == "as set"
    assert report.max_relative_error == 0


def test_a_wrong_gradient_is_found_among_nans():
    model = with_nan_gradient(rf.make_reversible(llama(), rf.Midpoint()))
    rf.set_activations(model, Detached())
    report = rf.verify_gradients(model, BATCH)
    assert not report.bit_exact
    assert report.decided
    assert "DIFFER" in str(report)


def test_a_wrong_gradient_is_found_among_kernels_that_vary(monkeypatch):
    model = varying_backward(monkeypatch, rf.make_reversible(llama(), rf.Midpoint()))
    rf.set_activations(model, Detached())
    report = rf.verify_gradients(model, BATCH)
    assert not report.bit_exact
    assert report.decided
    assert report.kernels == "deterministic"
    assert "DIFFER" in str(report)


def test_kernels_without_a_deterministic_form_leave_the_comparison_undecided(monkeypatch):
    report = rf.verify_gradients(
        varying_backward(monkeypatch, rf.make_reversible(llama(), rf.Midpoint()), deterministic_form=False), BATCH
    )
    assert not report.bit_exact
    assert not report.decided
    assert report.kernels == "as set"
    assert report.varying
    assert 0 < report.max_relative_error < 1e-4
    assert report.missing.startswith("put_")
    assert (
        f"CANNOT BE COMPARED with stored gradients to the bit: PyTorch has no deterministic form of {report.missing}"
        in (str(report))
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_mismatch_raises_and_the_model_is_left_as_it_was(monkeypatch):
    model = rf.make_reversible(llama(), rf.Midpoint(), "checkpoint")
    monkeypatch.setattr(StatePair, "retreat", lambda self, *_: None)
    with pytest.raises(rf.RebuildMismatchError):
        rf.verify_gradients(model, BATCH)
    assert model.model.layers[0]._reversible_role.stack.activations == rf.Checkpoint()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_policy_of_ones_own_is_compared_itself():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), Detached())
    report = rf.verify_gradients(model, batch(model))
    assert not report.bit_exact
    assert any("self_attn" in name for name in report.differing)
    assert rf.describe(model).activations == "detached"
    rf.set_activations(model, rf.Checkpoint())
    assert rf.verify_gradients(model, batch(model)).bit_exact


def test_the_report_of_a_budget_and_the_largest_magnitude_are_kept():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint(), "budget:64MB")
    model(**batch(model)).loss.backward()
    stack, report = require_reversible(model), rf.budget_report(model)
    stack.largest_magnitude = 0.0
    assert rf.verify_gradients(model, batch(model)).bit_exact
    assert rf.budget_report(model) is report
    assert stack.largest_magnitude == 0.0


def test_a_batch_is_a_mapping():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    with pytest.raises(TypeError, match=r"A batch is a mapping of the model's arguments, such as .*, not Tensor"):
        rf.verify_gradients(model, batch(model)["input_ids"])


def test_what_cannot_be_verified_is_refused():
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.verify_gradients(llama(), BATCH)
    with pytest.raises(ValueError, match="No parameter"):
        rf.verify_gradients(rf.make_reversible(llama(), rf.Midpoint()).requires_grad_(False), BATCH)
    with pytest.raises(ValueError, match="no inverse"):
        rf.verify_gradients(rf.make_reversible(llama(), rf.Residual(), "store"), BATCH)


def test_hooks_that_use_gradients_are_refused_before_they_run():
    model = rf.make_reversible(llama(), rf.Midpoint())
    calls = []
    handle = model.model.norm.weight.register_post_accumulate_grad_hook(calls.append)
    with pytest.raises(ValueError, match="Hooks on the parameters"):
        rf.verify_gradients(model, BATCH)
    assert not calls
    handle.remove()
    assert rf.verify_gradients(model, BATCH).bit_exact


def test_a_model_without_a_loss_is_told_what_to_give():
    model = rf.make_reversible(llama(), rf.Midpoint())
    with pytest.raises(ValueError, match="The model returned no loss; give labels"):
        rf.verify_gradients(model, {"inputs_embeds": torch.ones(2, 10, model.config.hidden_size)})


def test_sparse_gradients_are_compared():
    model = rf.make_reversible(llama(tie_word_embeddings=False), rf.Midpoint())
    model.model.embed_tokens.sparse = True
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    assert model.model.embed_tokens.weight.grad.is_sparse
    assert rf.verify_gradients(model, BATCH).bit_exact
    rf.set_activations(model, Detached())
    assert "model.embed_tokens.weight" in rf.verify_gradients(model, BATCH).differing


def test_passes_that_leave_no_gradient_prove_nothing():
    model = rf.make_reversible(llama(), rf.Midpoint()).requires_grad_(False)
    model.unused = torch.nn.Parameter(torch.ones(3))
    inputs = {"inputs_embeds": torch.ones(2, 10, model.config.hidden_size, requires_grad=True)}
    with pytest.raises(ValueError, match="No parameter has a gradient"):
        rf.verify_gradients(model, inputs | {"labels": BATCH["input_ids"]})


def test_a_loss_that_is_not_finite_is_no_reason_to_blame_the_rebuilding():
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="The loss is nan with stored activations"):
        rf.verify_gradients(model, batch(model))
