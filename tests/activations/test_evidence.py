import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from revformers.activations.determined import Determined
from revformers.activations.evidence import Evidence, Leaf

HIDDEN = torch.randn(3, 8, requires_grad=True)


def input_of_a_field():
    return HIDDEN * 1  # as a state: no leaf


def first(function, hidden, held=False):
    evidence = Evidence(hidden)
    with saved_tensors_hooks(lambda tensor: evidence.add(tensor, held=held), lambda _: None):
        function(hidden)
    evidence.finish()
    return evidence


def again(evidence, function, hidden):
    later = evidence.again()
    with saved_tensors_hooks(later.add, lambda _: None):
        function(hidden.detach().requires_grad_())
    return later


def equal(evidence, function, hidden):
    later = again(evidence, function, hidden)
    same = later.equal()
    return later.other_leaf is None and (same is None or bool(same))


LAYER = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1))


def test_the_same_evaluation_is_the_same():
    hidden = input_of_a_field()
    assert equal(first(LAYER, hidden), LAYER, hidden)


@pytest.mark.parametrize("place", range(len(LAYER)))
def test_one_bit_of_any_activation_shows(place):
    hidden = input_of_a_field()
    evidence = first(LAYER, hidden)

    def differ(module, inputs, output):
        changed = output.clone()
        changed.view(-1)[3] = torch.nextafter(changed.view(-1)[3], torch.tensor(9.0)).detach()
        return changed

    handle = LAYER[place].register_forward_hook(differ)
    try:
        # The very last result is saved by nobody: that one the step compares itself.
        assert equal(evidence, LAYER, hidden) == (place == len(LAYER) - 1)
    finally:
        handle.remove()


def test_a_weight_is_known_by_its_memory_and_its_version():
    weight = nn.Parameter(torch.randn(8, 8))
    leaf = Leaf(weight.T, weight)
    assert leaf.equals(weight.T) is True
    assert leaf.equals(weight) is False, "another view of it"
    weight.requires_grad_(False)
    assert leaf.equals(weight.T) is False
    weight.requires_grad_(True)
    copy = nn.Parameter(weight.detach().clone())
    assert bool(leaf.equals(copy.T))
    with torch.no_grad():
        copy[0, 0] += 1
    assert not bool(leaf.equals(copy.T))
    with torch.no_grad():
        weight[0, 0] += 1
    assert not leaf.is_unchanged()
    assert leaf.equals(weight.T) is False


@pytest.mark.parametrize("trains", [True, False])
def test_a_weight_that_is_gone_may_be_replaced_only_if_it_was_frozen(trains):
    weight = nn.Parameter(torch.randn(8, 8), requires_grad=trains)
    leaf = Leaf(weight, weight)
    del weight
    gc.collect()
    assert leaf.equals(torch.zeros(8, 8)) is not trains


def test_what_is_held_is_read_when_it_is_let_go_of():
    hidden, held = input_of_a_field(), []
    evidence = Evidence(hidden)

    def hold(tensor):
        evidence.add(tensor, held=True)
        held.append(tensor.detach())

    with saved_tensors_hooks(hold, lambda _: None):
        LAYER(hidden)
    evidence.finish()
    evidence.read_held(dict(enumerate(held)))
    assert equal(evidence, LAYER, hidden)
    assert not equal(evidence, LAYER, hidden + 1)


def test_what_was_dropped_meanwhile_is_not_compared():
    hidden = input_of_a_field()
    evidence = first(LAYER, hidden, held=True)
    evidence.read_held({})
    assert equal(evidence, LAYER, hidden + 1)


def test_another_layout_of_the_same_memory_shows():
    square = torch.randn(8, 8)

    def run(transposed, hidden):
        return functional.softmax(square.T if transposed else square, -1) @ (hidden.T @ hidden).sin()

    hidden = input_of_a_field()
    assert equal(first(lambda hidden: run(False, hidden), hidden), lambda hidden: run(False, hidden), hidden)
    assert not equal(first(lambda hidden: run(False, hidden), hidden), lambda hidden: run(True, hidden), hidden)


def test_nothing_large_is_kept():
    hidden, tensors = input_of_a_field(), []

    def run(hidden):
        large = (hidden @ torch.randn(8, 20000)).sin()
        tensors.append(weakref.ref(large))
        return large.cos()

    evidence = first(run, hidden)
    gc.collect()
    assert tensors[0]() is None
    assert evidence is not None


def determined(function, hidden):
    """Which of the tensors that a function saves follow from others."""
    known, found = Determined(hidden), []
    with saved_tensors_hooks(lambda tensor: found.append(known.is_so(tensor)), lambda _: None):
        function(hidden)
    return found


def test_products_and_activation_functions_of_what_is_compared_follow_from_it():
    hidden = input_of_a_field()
    gate, up = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def mlp(hidden):
        return (functional.silu(gate(hidden)) * up(hidden)) @ gate.weight

    saved = first(mlp, hidden)._saved
    assert sum(isinstance(one, Leaf) for one in saved) == 3
    assert saved.count(True) == 2, "gate(x) and up(x)"
    assert saved.count(False) == 4, "the input twice, what silu makes, and the product"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: (x * 2).sin(), [False]),  # a product with a number saves nothing
        (lambda x: (x @ x.T).sin(), [True, True, False]),
        (lambda x: x.double().sin(), [True]),
        (lambda x: x.view(2, 12).sin(), [True]),
        (lambda x: (x + torch.randn_like(x)).sin(), [False]),
        (lambda x: (x * torch.randn_like(x)).sin(), [False, False]),
        (lambda x: (x * x.sin()).cos(), [True, False, True, True]),
        (lambda x: (x * x.sin()).add_(1).cos(), [True, False, True, False]),
    ],
)
def test_nothing_else_does(function, expected):
    assert determined(function, input_of_a_field()) == expected


def test_what_was_written_to_unseen_by_the_graph_does_not_follow():
    def run(x):
        product = x * x.sin()
        with torch.no_grad():
            product.add_(1)
        return product.cos()

    assert determined(run, input_of_a_field())[-1] is False
