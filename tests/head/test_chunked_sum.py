import pytest
import torch
from torch import nn
from torch.nn import functional

from revformers.head.chunked_sum import chunked_sum, few_chunks


def head(vocabulary=29, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    module = nn.Linear(width, vocabulary, dtype=dtype)
    return module, torch.randn(13, width, dtype=dtype), torch.randint(vocabulary, (13,))


def capped_loss(module):
    def loss(hidden, targets):
        return functional.cross_entropy(torch.tanh(module(hidden)).float().double(), targets, reduction="sum")

    return loss


def gradients(result, *inputs):
    return torch.autograd.grad(result, inputs, allow_unused=True)


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
def test_value_and_gradients_are_those_of_one_call(chunk):
    module, rows, targets = head()
    rows.requires_grad_()
    # Whatever is made of the sum reaches the gradients as a factor.
    expected = capped_loss(module)(rows, targets) / 7 + module.weight.square().sum()
    result = chunked_sum(capped_loss(module), rows, targets, chunk=chunk) / 7 + module.weight.square().sum()
    assert torch.allclose(result, expected, rtol=1e-6)
    inputs = rows, module.weight, module.bias
    for one, other in zip(gradients(result, *inputs), gradients(expected, *inputs), strict=True):
        assert torch.allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("rows_need", [True, False])
@pytest.mark.parametrize("weights_need", [True, False])
def test_only_what_needs_a_gradient_gets_one(rows_need, weights_need):
    module, rows, targets = head()
    rows.requires_grad_(rows_need)
    module.requires_grad_(weights_need)
    result = chunked_sum(capped_loss(module), rows, targets, chunk=4)
    assert result.requires_grad == (rows_need or weights_need)
    if result.requires_grad:
        result.backward()
    assert (rows.grad is not None) == rows_need
    assert (module.weight.grad is not None) == weights_need


def test_a_plan_evaluates_only_the_first_chunks():
    module, rows, targets = head()
    with few_chunks(2):
        planned = chunked_sum(capped_loss(module), rows, targets, chunk=4)
    assert torch.equal(planned, chunked_sum(capped_loss(module), rows[:8], targets[:8], chunk=4))
    assert not torch.equal(planned, chunked_sum(capped_loss(module), rows, targets, chunk=4))


def test_the_function_is_called_once_a_chunk_and_never_with_more_rows():
    module, rows, targets = head()
    sizes = []

    def loss(hidden, chunk_targets):
        sizes.append(len(hidden))
        return capped_loss(module)(hidden, chunk_targets)

    chunked_sum(loss, rows.requires_grad_(), targets, chunk=5).backward()
    assert sizes == [5, 5, 3]


def test_without_gradients_there_is_only_a_value():
    module, rows, targets = head()
    with torch.no_grad():
        result = chunked_sum(capped_loss(module), rows, targets, chunk=5)
    assert torch.allclose(result, capped_loss(module)(rows, targets))
    assert not result.requires_grad


def test_a_retained_graph_goes_backwards_twice():
    module, rows, targets = head()
    result = chunked_sum(capped_loss(module), rows, targets, chunk=5)
    result.backward(retain_graph=True)
    once = module.weight.grad.clone()
    result.backward()
    assert torch.equal(module.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="a second time"):
        result.backward()


def test_there_is_no_second_derivative():
    module, rows, targets = head()
    result = chunked_sum(capped_loss(module), rows, targets, chunk=5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(result, module.weight, create_graph=True)


def test_many_chunks_in_bfloat16_lose_no_more_than_one():
    module, *_ = head(width=64, vocabulary=512, dtype=torch.bfloat16)
    rows, targets = torch.randn(600, 64, dtype=torch.bfloat16), torch.randint(512, (600,))

    def loss(hidden, chunk_targets):
        return functional.cross_entropy(module(hidden).float(), chunk_targets, reduction="sum")

    def errors(result, exact):
        (gradient,) = gradients(result, module.weight)
        return float((gradient.double() - exact).norm() / exact.norm())

    wide = nn.Linear(64, 512, dtype=torch.float64)
    wide.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    (exact,) = gradients(functional.cross_entropy(wide(rows.double()), targets, reduction="sum"), wide.weight)
    in_bfloat16 = sum(loss(*pair) for pair in zip(rows.split(2), targets.split(2), strict=True))
    chunked = errors(chunked_sum(loss, rows, targets, chunk=2), exact)
    assert chunked < 1.5 * errors(loss(rows, targets), exact)
    assert errors(in_bfloat16, exact) > 2 * chunked


def test_a_parameter_with_a_hook_is_refused():
    module, rows, targets = head()
    module.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ValueError, match=r"parameter \[29, 8\] of the head has a gradient hook"):
        chunked_sum(capped_loss(module), rows, targets, chunk=5)


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_gradients_that_autograd_returns_in_the_same_memory_are_added_apart(chunk):
    """A sum hands one gradient to both of its terms."""
    module, rows, targets = head(dtype=torch.float32)
    shift = torch.zeros_like(module.weight, requires_grad=True)

    def loss(hidden, chunk_targets):
        logits = functional.linear(hidden, module.weight + shift, module.bias)
        return functional.cross_entropy(logits, chunk_targets, reduction="sum")

    inputs = module.weight, shift, module.bias
    expected = gradients(loss(rows, targets), *inputs)
    for one, other in zip(gradients(chunked_sum(loss, rows, targets, chunk=chunk), *inputs), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_gradient_without_memory_of_its_own_is_added_up():
    shift = torch.zeros(3, requires_grad=True)
    result = chunked_sum(lambda rows: shift.sum() + rows.sum(), torch.ones(4, 2), chunk=1)
    assert torch.equal(*gradients(result, shift), torch.full((3,), 4.0))
