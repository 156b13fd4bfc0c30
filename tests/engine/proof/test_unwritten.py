from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

import revformers as rf
from revformers.engine import step as rebuild
from revformers.engine.proof import unwritten
from revformers.engine.proof.unwritten import written_parts
from revformers.engine.ticket import Packed, SavedTensor
from tests.tiny_models import batch, tiny

LOG_SUM_EXP = (2, 4, 16)


@pytest.fixture
def elsewhere(monkeypatch):
    """As if the CPU were a device whose kernels leave some numbers as they were."""
    monkeypatch.setattr(unwritten, "WRITE_EVERYTHING", set())


def find(hidden):
    tickets, evaluation = [], object()

    def pack(tensor):
        tickets.append(SavedTensor(None, 0, evaluation, len(tickets), tensor))
        return tickets[-1]

    with saved_tensors_hooks(pack, SavedTensor.redeem):
        update = scaled_dot_product_attention(hidden.sin(), hidden, hidden).cos()
    assert written_parts(update, hidden, object()) == {}, "of another evaluation"
    return {tickets[number].shape: elements for number, elements in written_parts(update, hidden, evaluation).items()}


def test_the_log_sum_exp_of_a_fused_kernel_is_found(elsewhere):
    hidden = torch.randn(2, 4, 10, 8, requires_grad=True) * 1
    assert find(hidden) == {(2, 4, 10): 10}, "as many as there are queries"


def test_on_a_cpu_there_is_none():
    assert find(torch.randn(2, 4, 10, 8, requires_grad=True) * 1) == {}


def with_garbage_from(monkeypatch, place):
    """Let later evaluations find something else in the log-sum-exp from a place on."""
    add = rebuild.LaterEvidence.add

    def garbage(self, tensor):
        if tensor.shape == LOG_SUM_EXP and tensor.dtype == torch.float32:
            tensor = tensor.clone()
            tensor[..., place:] = 7.0
        return add(self, tensor)

    monkeypatch.setattr(rebuild.LaterEvidence, "add", garbage)


@pytest.mark.parametrize(("written", "place", "equal"), [(12, 12, True), (12, 11, False), (16, 12, False)])
def test_only_what_no_kernel_wrote_is_not_compared(elsewhere, monkeypatch, written, place, equal):
    monkeypatch.setattr(
        rebuild,
        "written_parts",
        lambda *of: dict.fromkeys(written_parts(*of), written),
    )
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    loss = model(**batch(model)).loss
    with_garbage_from(monkeypatch, place)
    if equal:
        loss.backward()
    else:
        with pytest.raises(rf.RebuildMismatchError):
            loss.backward()


def test_another_scaling_shows_where_all_values_are_zero(elsewhere):
    """Then the outputs of attention are zero with any scaling, and its log-sum-exp alone can tell."""
    model = rf.make_reversible(tiny("llama"), rf.Midpoint())
    attention = model.model.layers[2].self_attn
    with torch.no_grad():
        attention.v_proj.weight.zero_()
    loss = model(**batch(model)).loss
    attention.scaling *= 2
    with pytest.raises(rf.RebuildMismatchError, match="scaling"):
        loss.backward()


class Node:
    """Stands for the node of an attention kernel of GPUs."""

    next_functions = ()

    def __init__(self, dropout, packed):
        self._saved_dropout_p = dropout
        self._raw_saved_philox_seed = SimpleNamespace(data=packed)

    def name(self):
        return "ScaledDotProductFlashAttentionBackward0"


@pytest.mark.parametrize(("dropout", "found"), [(0.0, {3: 0}), (0.1, {})])
def test_without_dropout_the_state_of_a_generator_is_not_written(elsewhere, dropout, found):
    evaluation = object()
    update = SimpleNamespace(grad_fn=Node(dropout, Packed(evaluation, 3)))
    assert written_parts(update, torch.ones(1), evaluation) == found
