from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

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


GARBAGE = count(1)
KINDS = {
    "flash": lambda query: (query.new_empty(query.shape[:3]), torch.uint64, (2,)),
    "efficient": lambda query: (query.new_empty((*query.shape[:2], 32)), torch.int64, ()),
    "cudnn": lambda query: (query.new_empty((*query.shape[:3], 1)), torch.int64, ()),
}
"""The log-sum-exp of a kernel, and the form of the state of a generator; with 16 tokens."""


def _empty(query, kind):
    log_sum_exp, dtype, shape = KINDS[kind](query)
    states = (torch.empty(size, dtype=dtype, device=query.device) for size in (shape, ()))
    return torch.empty_like(query), log_sum_exp.float(), *states


@torch.library.custom_op("tests::attention_with_garbage", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As a kernel of GPUs: what it does not write is different in every call."""
    result, log_sum_exp, *states = _empty(query, kind)
    scores = (query @ key.mT).logsumexp(-1)
    log_sum_exp.fill_(next(GARBAGE)).view(-1, log_sum_exp[0, 0].numel())[:, :16] = scores.view(-1, 16)
    result.copy_(scaled_dot_product_attention(query, key, value))
    return result, log_sum_exp, *(state.fill_(next(GARBAGE)) for state in states)


@attention.register_fake
def _(query, key, value, kind):
    return _empty(query, kind)


@torch.library.custom_op("tests::attention_with_garbage_backward", mutates_args=())
def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, seed: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale = query.shape[-1] ** -0.5
    weights = (query @ key.mT * scale).softmax(-1)
    of_weights = gradient @ value.mT
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
    return of_scores @ key, of_scores.mT @ query, weights.mT @ gradient


@attention_backward.register_fake
def _(gradient, query, key, value, scores, seed, offset):
    return tuple(map(torch.empty_like, (query, key, value)))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output[1:])


attention.register_autograd(
    lambda ctx, gradient, *_: (*attention_backward(gradient, *ctx.saved_tensors), None), setup_context=_keep
)


@pytest.fixture(params=["efficient", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("flash", "cudnn"))])
def compiled(request, elsewhere):
    """A model whose compiled layers run such a kernel."""

    def run(module, query, key, value, mask, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
        return attention(query, key, value, request.param)[0].transpose(1, 2).contiguous(), None

    AttentionInterface.register("with_garbage", run)
    torch.compiler.reset()
    model = rf.make_reversible(tiny("llama", attn_implementation="with_garbage"), rf.Midpoint())
    yield rf.compile_layers(model, backend="aot_eager")
    torch.compiler.reset()


def test_what_no_kernel_of_a_compiled_layer_wrote_is_not_compared(compiled):
    assert rf.verify_gradients(compiled, batch(compiled)).bit_exact


def test_what_the_kernels_of_a_compiled_layer_wrote_is_compared(compiled):
    loss = compiled(**batch(compiled)).loss
    compiled.model.layers[2].self_attn.q_proj.weight.data.mul_(1.5)
    with pytest.raises(rf.RebuildMismatchError, match="Layer 2"):
        loss.backward()


def test_a_log_sum_exp_of_compiled_code_is_known_by_the_other_shapes():
    evaluation = object()

    def found(*saved, hidden=(2, 40, 64)):
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in saved]
        tickets = [SavedTensor(None, 0, evaluation, number, tensor) for number, tensor in enumerate(tensors)]
        return unwritten._written_by_compiled(tickets, torch.Size(hidden))

    query, padded, number = ((2, 4, 40, 16), torch.float32), ((2, 4, 64), torch.float32), ((), torch.int64)
    both = query, query  # and the results
    others = ((2, 4, 96), torch.float32), ((2, 5, 64), torch.float32), ((2, 4, 64), torch.bfloat16)
    assert found(*both, padded) == {2: 40}
    assert found(*both, *others, ((2, 4, 63), torch.float32)) == {}
    assert found(query, padded) == {1: 40}
    assert found(*both, padded, number, number) == {2: 40, 3: 0, 4: 0}
    assert found(*both, padded, number, number, number) == {2: 40}, "one of them is something else"
    assert found(number, number) == {}, "no attention"
    assert found(*both, ((2, 4, 40, 1), torch.float32), number, number) == {3: 0, 4: 0}
    flash = [*both, ((2, 4, 40), torch.float32), ((2,), torch.uint64), ((), torch.uint64)]
    assert found(*flash) == {2: 40, 3: 0, 4: 0}
    assert found(*flash, number) == {2: 40, 3: 0, 4: 0}, "the state of flash attention has another form"


def test_what_a_layer_saves_beside_attention_is_not_taken_for_its_log_sum_exp():
    """A tensor of (batch, tokens, 32) beside queries of (batch, tokens, heads, width), as of a small adapter."""
    evaluation = object()

    def found(tokens, heads):
        shapes = [(2, tokens, heads, 16)] * 2 + [(2, tokens, 32), (2, tokens, heads, 1), (2, heads, tokens, 16), (), ()]
        dtypes = [torch.float32] * 5 + [torch.int64] * 2
        tickets = [
            SavedTensor(None, 0, evaluation, number, torch.empty(shape, dtype=dtype))
            for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        return unwritten._written_by_compiled(tickets, torch.Size((2, tokens, 64)))

    assert found(16, 4) == {}
    assert found(4, 4) == {}, "as many tokens as heads"
