from functools import partial

import pytest
import torch
from torch import nn

import revformers as rf
from revformers.engine.field import OtherEvaluationError
from revformers.engine.proof.verdicts import Verdicts
from revformers.engine.step import Step
from revformers.engine.ticket import SavedTensor
from revformers.private_api import EveryKernel

WIDTH = 8


def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))


def begin(field):
    """Return a step after its first evaluation, its input and the update, which holds the tickets."""
    hidden = torch.randn(2, 3, WIDTH, requires_grad=True) * 1
    step = Step("layer 3", None, field, hidden)
    update = step.evaluate(hidden, partial(SavedTensor, None, 0))
    step.keep_evidence(update)
    step.finish()
    return step, hidden, update


def again(step, hidden):
    return step.evaluate_again(hidden, Verdicts(at_once=True))


def test_a_second_evaluation_saves_and_returns_what_the_first_did_with_the_same_random_numbers():
    module = layer()
    step, hidden, update = begin(module)
    outer = torch.get_rng_state()
    saved, second = again(step, hidden)
    assert torch.equal(second, update)
    assert torch.equal(torch.get_rng_state(), outer)
    assert not torch.equal(module(hidden), update), "it draws random numbers"
    step.hand_out(saved)
    tickets = list(step.tickets())
    assert [ticket.tensor.shape for ticket in tickets] == [ticket.shape for ticket in tickets]
    assert any(torch.equal(ticket.tensor, hidden.view(-1, WIDTH)) for ticket in tickets)


def test_a_ticket_is_made_of_what_autograd_wants_to_keep():
    hidden, shown = torch.randn(2, 3, WIDTH, requires_grad=True) * 1, []

    def new_ticket(evaluation, number, tensor):
        shown.append((number, tensor.data_ptr()))
        return SavedTensor(None, 0, evaluation, number, tensor)

    Step("layer 3", None, torch.sin, hidden).evaluate(hidden, new_ticket)
    assert shown == [(0, hidden.data_ptr())]


def test_the_comparison_stays_outside_of_a_mode_that_calls_python_for_every_kernel():
    kernels = []

    def run(kernel, arguments, keywords):
        kernels.append(kernel)
        return kernel(*arguments, **keywords)

    def field(hidden):
        with EveryKernel(run):
            return hidden.sin()

    step, hidden, _ = begin(field)
    again(step, hidden)
    assert kernels == 2 * [torch.ops.aten.sin.default]


def test_autocast_is_replayed():
    module = layer().eval()
    with torch.autocast("cpu", torch.bfloat16):
        step, hidden, update = begin(module)
    assert again(step, hidden)[1].dtype == update.dtype == torch.bfloat16


def test_tickets_that_autograd_let_go_of_are_left_out():
    step, hidden, update = begin(layer())
    saved = again(step, hidden)[0]
    del update
    assert list(step.tickets()) == []
    step.hand_out(saved)


class Changing(nn.Module):
    """Computes one thing, and something else after it was told to."""

    def __init__(self, one, other):
        super().__init__()
        self.weight, self.copy = (nn.Parameter(torch.eye(WIDTH)) for _ in range(2))
        self.one, self.other, self.number = one, other, []

    def forward(self, hidden):
        return (self.other if self.number else self.one)(self, hidden)


def fail(kind):
    def field(_, hidden):
        raise kind("no more")

    return field


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (lambda m, h: h.sin().cos(), lambda m, h: h.sin(), "Evaluating layer 3 again saved 1 tensors where .* saved 2"),
        (lambda m, h: h @ m.weight, lambda m, h: h @ m.copy.T, r"with a tensor \[8, 8\] that is not the weight"),
        (lambda m, h: (h * h.sin()).cos(), lambda m, h: (h.sin() * h).cos(), "evaluated again by other operations"),
        (lambda m, h: h.sin().cos(), lambda m, h: (h.sin() * 2).cos(), "evaluated again to other values"),
        (lambda m, h: h + 1, lambda m, h: h + 2, "evaluated again to other values"),
        (lambda m, h: h.sin(), fail(OtherEvaluationError), "layer 3 no more"),
        (lambda m, h: h.sin(), fail(KeyError), r"cannot be evaluated again \(KeyError: 'no more'\)"),
    ],
)
def test_a_second_evaluation_that_is_not_the_first_is_refused(one, other, message):
    module = Changing(one, other)
    step, hidden, _update = begin(module)
    again(step, hidden)
    module.number.append(1)
    with pytest.raises(rf.RebuildMismatchError, match=f"(?i){message}.*number was changed"):
        again(step, hidden)


def test_a_weight_that_was_written_to_is_refused():
    module = layer()
    step, hidden, _update = begin(module)
    with torch.no_grad():
        module[3].weight.add_(1)
    with pytest.raises(rf.RebuildMismatchError, match=r"A weight of layer 3 was changed.* 3\.weight \[8, 8\] was"):
        again(step, hidden)


def test_tensors_of_another_shape_or_dtype_are_not_handed_out():
    step, hidden, _update = begin(lambda hidden: hidden.sin())
    for other in (hidden.double(), hidden[:1]):
        with pytest.raises(rf.RebuildMismatchError, match=r"where the forward pass saved \[2, 3, 8\] of torch.float32"):
            step.hand_out([(other, 0)])


@pytest.mark.parametrize("kind", [ValueError, torch.OutOfMemoryError, rf.NotReversibleError])
def test_errors_whose_cause_is_not_a_change_stay_what_they_are(kind):
    calls = []

    def field(hidden):
        calls.append(None)
        return hidden.sin() if len(calls) == 1 else fail(kind)(None, hidden)

    step, hidden, _update = begin(field)
    with pytest.raises(kind, match="no more") as error:
        again(step, hidden)
    notes = getattr(error.value, "__notes__", [])
    assert ("This was raised when layer 3 was evaluated again in the backward pass." in notes) == (kind is ValueError)


def test_a_buffer_that_counts_is_refused_after_the_first_evaluation():
    norm = nn.BatchNorm1d(3)
    with pytest.raises(rf.NotReversibleError, match=r"Layer 3 writes to its buffer num_batches_tracked"):
        begin(norm)
    begin(norm.eval())


def test_a_count_elsewhere_is_refused_when_it_goes_on():
    module = layer()
    module.seen = torch.zeros(1)

    def count(module, *_):
        module.seen += 1

    module.register_forward_hook(count)
    step, hidden, _update = begin(module)
    with pytest.raises(rf.NotReversibleError, match=r"Layer 3 writes to its seen when .* clear them \(zero_grad\)"):
        again(step, hidden)


def test_gradients_of_what_was_kept_of_a_second_evaluation_are_refused():
    module, outputs = layer(), []
    module[1].register_forward_hook(lambda _, __, output: outputs.append(output))
    step, hidden, _update = begin(module)
    again(step, hidden)
    with pytest.raises(rf.NotReversibleError, match="Something kept what layer 3 computed"):
        outputs[1].sum().backward()
