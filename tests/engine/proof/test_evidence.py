import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from revformers.engine.proof import determined as determined_module
from revformers.engine.proof import unwritten
from revformers.engine.proof.evidence import SMALL_WEIGHT, Evidence, Leaf, Saved, _Words
from revformers.engine.proof.situation import Situation
from revformers.engine.ticket import Packed

HIDDEN = torch.randn(3, 8, requires_grad=True)


def input_of_a_field():
    return HIDDEN * 1  # as a state: no leaf


def save(evidence, function, hidden):
    """Return the tensors that a function saves."""
    saved = []

    def pack(tensor):
        evidence.add(tensor)
        saved.append(tensor.detach())
        return Packed(evidence.evaluation, len(saved) - 1)

    with saved_tensors_hooks(pack, lambda _: None):
        function(hidden)
    evidence.finish({})
    return saved


def first(function, hidden):
    evidence = Evidence(hidden, Situation(LAYER))
    save(evidence, function, hidden)
    return evidence


def again(evidence, function, hidden):
    hidden = hidden.detach().requires_grad_()
    later = evidence.again(hidden)
    with saved_tensors_hooks(later.add, lambda _: None):
        function(hidden)
    later.finish()
    return later


def equal(evidence, function, hidden):
    later = again(evidence, function, hidden)
    same = later.equal()
    return later.other_leaf is None and not later.is_made_otherwise and (same is None or bool(same))


LAYER = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1))


def test_the_same_evaluation_is_the_same():
    hidden = input_of_a_field()
    assert equal(first(LAYER, hidden), LAYER, hidden)


def saved_by(function, hidden):
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.detach()), lambda _: None):
        function(hidden)
    return saved


@pytest.mark.parametrize("place", range(len(LAYER)))
def test_one_bit_of_any_activation_shows(place):
    """Unless it reaches nothing that is saved: what saves only its result, as softmax, may round it away."""
    hidden = input_of_a_field()
    evidence, saved = first(LAYER, hidden), saved_by(LAYER, hidden)
    seen = []
    for element in range(HIDDEN.numel()):

        def differ(module, inputs, output, element=element):
            changed = output.clone()
            # Detached before, because nextafter itself saves tensors with newer PyTorch.
            changed.view(-1)[element] = torch.nextafter(changed.detach().view(-1)[element], torch.tensor(9.0))
            return changed

        handle = LAYER[place].register_forward_hook(differ)
        try:
            same = all(map(torch.equal, saved_by(LAYER, hidden), saved))
            assert equal(evidence, LAYER, hidden) == same
            seen.append(not same)
        finally:
            handle.remove()
    # The very last result is saved by nobody: that one the step compares itself.
    assert any(seen) == (place < len(LAYER) - 1)


@pytest.mark.parametrize(("size", "same"), [(0, True), (2, False)])
def test_a_new_leaf_without_elements_is_no_difference(size, same):
    """As torch.utils.checkpoint of PyTorch 2.11 makes one in every evaluation."""
    hidden = input_of_a_field()

    def run(hidden):
        new = torch.rand(size, requires_grad=True)
        return (new * torch.ones(size)).sum() + (new * new).sum() + hidden.sin()

    assert equal(first(run, hidden), run, hidden) == same


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


@pytest.mark.parametrize("changed", [False, True])
def test_a_weight_that_is_gathered_for_every_evaluation_is_compared_by_its_bits(changed):
    """A stand-in for a weight under ZeRO-3."""
    weight = nn.Parameter(torch.randn(200, 300))
    weight.ds_tensor = weight.detach().flatten()[:100].clone()
    assert weight.numel() > SMALL_WEIGHT
    hidden = torch.randn(3, 200, requires_grad=True) * 1
    version, values = weight._version, weight.detach().clone()

    def run(hidden):
        return hidden @ weight

    evidence = first(run, hidden)
    weight.data = torch.empty(0)
    values[7, 7] += changed
    weight.data = values
    assert weight._version == version
    assert next(evidence.leaves()).is_unchanged()
    assert equal(evidence, run, hidden) == (not changed)


def test_a_weight_that_is_gone_equals_nothing():
    weight = nn.Parameter(torch.randn(8, 8))
    leaf = Leaf(weight, weight)
    del weight
    gc.collect()
    assert leaf.equals(torch.zeros(8, 8)) is False


def test_a_transposed_copy_in_the_place_of_a_weight_is_another():
    weight = nn.Parameter(torch.randn(8, 8))
    leaf = Leaf(weight, weight)
    assert bool(leaf.equals(nn.Parameter(weight.detach().clone())))
    assert leaf.equals(nn.Parameter(weight.detach().clone().T)) is False


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_frozen_weights_of_no_module_are_compared_by_their_bits(factor):
    weights = [torch.randn(8, 300), torch.randn(8, 300) * 0]
    weights[1] = weights[0] * factor

    def run(number):
        return lambda hidden: hidden @ nn.Parameter(weights[number].clone(), requires_grad=False)

    hidden = input_of_a_field()
    assert equal(first(run(0), hidden), run(1), hidden) == (factor == 1)


def test_another_layout_of_the_same_memory_shows():
    square = torch.randn(8, 8)

    def run(transposed):
        return lambda hidden: (hidden.T @ hidden) * (square.T if transposed else square)

    hidden = input_of_a_field()
    assert equal(first(run(False), hidden), run(False), hidden)
    assert not equal(first(run(False), hidden), run(True), hidden)


def sequences(hidden):
    """Return a product, (2, 3, 8)."""
    both = torch.stack([hidden, hidden])
    return both * both.sin()


WITHOUT_ITS_ENDS = torch.tensor([[1.0], [2.0], [1.0]])

OTHERWISE = {
    "another activation function": (lambda x: functional.silu(x @ x.T).cos(), lambda x: functional.gelu(x @ x.T).cos()),
    "a hook on its result": (lambda x: functional.silu(x @ x.T).cos(), lambda x: (functional.silu(x @ x.T) * 3).cos()),
    "a hook on a product": (lambda x: (x * x.sin()).cos(), lambda x: ((x * x.sin()) * 3).cos()),
    "another cast": (lambda x: x.double().half().cos(), lambda x: x.bfloat16().half().cos()),
    "another order of two products": (
        lambda x: [(m := x * x.sin(), n := x.cos() * x), m.exp(), n.exp()],
        lambda x: [(m := x * x.sin(), n := x.cos() * x), n.exp(), m.exp()],
    ),
    "another of two products": (
        lambda x: [one := x * x.sin(), x.cos() * x, one.exp()],
        lambda x: [x * x.sin(), one := x.cos() * x, one.exp()],
    ),
    "a write that autograd does not see, and a copy": (
        lambda x: written(x * x.sin(), 1).clone().cos(),
        lambda x: written(x * x.sin(), 2).clone().cos(),
    ),
    "a write that nobody counts": (
        lambda x: written((x * x.sin()), 1, data=True).cos(),
        lambda x: written((x * x.sin()), 2, data=True).cos(),
    ),
    "a write to its input that autograd does not see": (
        lambda x: written(x, 1).cos(),
        lambda x: written(x, torch.tensor([[2.0], [2.0], [1.0]])).cos(),
    ),
    "one that nobody counts, to the first sequence of two": (
        lambda x: written(sequences(x), torch.tensor([[[1.0]], [[1.0]]]), data=True).view(-1, 8) @ x.T,
        lambda x: written(sequences(x), torch.tensor([[[2.0]], [[1.0]]]), data=True).view(-1, 8) @ x.T,
    ),
    "other groups of a shuffle": (
        lambda x: (x * x.sin()).view(3, 4, 2).transpose(1, 2).reshape(3, 8).cos(),
        lambda x: (x * x.sin()).view(3, 2, 4).transpose(1, 2).reshape(3, 8).cos(),
    ),
    "a view that has some elements twice, and others not": (
        lambda x: [one := written(x @ x.T, 1, data=True), one[:1].expand(3, 3).sin(), one.cos()],
        lambda x: [one := written(x @ x.T, WITHOUT_ITS_ENDS, data=True), one[:1].expand(3, 3).sin(), one.cos()],
    ),
    "another part of a product": (lambda x: (x * x.sin())[:2].cos(), lambda x: (x * x.sin())[1:].cos()),
    "another view of it": (
        lambda x: (x.T @ x * x[0]).cos(),
        lambda x: (x.T @ x * x[0]).T.cos(),
    ),
}


def written(product, factor, data=False):
    with torch.no_grad():
        (product.data if data else product).mul_(factor)
    return product


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_follows_from_others_must_follow_in_the_same_way(what):
    one, other = OTHERWISE[what]
    hidden = input_of_a_field()
    assert equal(first(one, hidden), one, hidden)
    assert not equal(first(one, hidden), other, hidden)


@pytest.mark.parametrize("wrap", [lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)])
def test_what_is_saved_under_other_hooks_is_no_evidence(wrap):
    """Its factors are saved where this library does not see them."""
    hidden, factors = input_of_a_field(), [2.0]

    def run(hidden):
        return wrap(lambda x: x.sin() * (x.tan() * factors[-1]), hidden).cos()

    evidence = first(run, hidden)
    assert equal(evidence, run, hidden)
    factors.append(3.0)
    assert not equal(evidence, run, hidden)


def test_a_small_weight_is_compared_by_its_bits_and_nothing_follows_from_a_large_one():
    for size, written in ((8, True), (SMALL_WEIGHT + 1, False)):
        weight = nn.Parameter(torch.randn(size))

        def run(hidden, weight=weight, size=size):
            return (hidden[0, :1].expand(size).tan() * weight).cos()

        hidden = input_of_a_field()
        evidence = first(run, hidden)
        assert (evidence._saved[-1].derivation is not None) == written
        weight.data.mul_(2)
        assert not equal(evidence, run, hidden)


def test_what_was_made_outside_of_the_layer_is_compared():
    outside = nn.Parameter(torch.randn(3, 8))
    gate = functional.silu(outside.tan())
    hidden = input_of_a_field()

    def run(hidden):
        return hidden.tan() * gate

    evidence = first(run, hidden)
    with torch.no_grad():
        gate.mul_(1.5)
    assert not equal(evidence, run, hidden)


def test_sparse_tensors_are_compared():
    hidden = input_of_a_field()
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        matrix = torch.eye(3).to_sparse(layout=layout)
        other = torch.diag(torch.tensor([1.0, 1.0, 2.0])).to_sparse(layout=layout)

        def run(matrix):
            return lambda hidden: torch.sparse.mm(matrix, hidden).cos()

        assert equal(first(run(matrix), hidden), run(matrix), hidden)
        assert not equal(first(run(matrix), hidden), run(other), hidden)


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


def test_products_and_activation_functions_of_what_is_compared_follow_from_it():
    hidden = input_of_a_field()
    gate, up = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def mlp(hidden):
        return (functional.silu(gate(hidden)) * up(hidden)) @ gate.weight

    saved = first(mlp, hidden)._saved
    assert sum(one.leaf is not None for one in saved) == 3
    assert sum(one.leaf is None and one.is_read for one in saved) == 3, "gate(x), up(x) and, on a CPU, what silu makes"
    assert sum(one.derivation is not None for one in saved) == 3, "the input twice and the product"


def test_what_silu_makes_is_read_on_a_cpu_as_its_last_elements_are_computed_another_way(monkeypatch):
    gate = torch.randn(2, 100, 27, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(size, part):
        """SiLU of the same numbers in the same order, with gaps between them that are elsewhere."""
        with_gaps = torch.zeros(size, dtype=torch.float64)
        with_gaps[part] = gate
        return lambda hidden: functional.silu((with_gaps + hidden.sum() * 0)[part]) * hidden.sum()

    one, other = run((2, 101, 27), (slice(None), slice(100))), run((2, 100, 28), (..., slice(27)))
    hidden = input_of_a_field()
    if torch.equal(one(hidden), other(hidden)):
        pytest.skip("this CPU computes all elements in one way")
    assert equal(first(one, hidden), one, hidden)
    assert not equal(first(one, hidden), other, hidden)
    monkeypatch.setattr(determined_module, "NODES_THAT_DEPEND_ON_THREADS", set())
    assert equal(first(one, hidden), other, hidden), "it would not be seen, were it taken to follow from the gate"


def test_without_tensors_there_is_nothing_to_compare():
    evidence = Evidence(input_of_a_field(), Situation(LAYER))
    save(evidence, lambda hidden: hidden + 1, input_of_a_field())
    assert again(evidence, lambda hidden: hidden + 1, input_of_a_field()).equal() is None


def test_the_leaves_are_the_weights_that_were_saved():
    evidence = first(LAYER, input_of_a_field())
    found = {id(leaf.reference()) for leaf in evidence.leaves()}
    assert found == {id(weight) for weight in (LAYER[0].weight, LAYER[2].weight, LAYER[3].weight, LAYER[3].bias)}


@pytest.mark.parametrize("gone", [True, False])
def test_what_autograd_let_go_of_is_not_compared_but_for_what_others_follow_from(gone):
    hidden = input_of_a_field()
    numbers = {"sine of a copy": 0}  # the first tensor that is saved, of which nothing is needed

    def run(factor):
        def function(hidden):
            ((hidden + 0) * factor).sin()
            return (hidden.sin() * hidden).cos()

        return function

    evidence = Evidence(hidden, Situation(LAYER))
    finish = evidence.finish
    evidence.finish = lambda written: finish(written, lambda: set(numbers.values()) if gone else set())
    save(evidence, run(1.0), hidden)
    assert equal(evidence, run(1.0), hidden)
    assert equal(evidence, run(2.0), hidden) == gone


@pytest.mark.parametrize(("place", "is_seen"), [(4, True), (5, False)])
def test_what_no_kernel_wrote_is_not_compared(monkeypatch, place, is_seen):
    monkeypatch.setattr(unwritten, "WRITE_EVERYTHING", set())
    hidden, log_sum_exp = input_of_a_field(), torch.zeros(2, 3, 8)

    def run(hidden):
        return hidden.sum() * log_sum_exp

    evidence = Evidence(hidden, Situation(LAYER))
    finish = evidence.finish
    evidence.finish = lambda _: finish({0: 5})
    save(evidence, run, hidden)
    log_sum_exp[..., place] = 1.0
    assert equal(evidence, run, hidden) != is_seen


@pytest.mark.parametrize("places", [("cpu", "meta"), ("meta", "cpu")])
def test_numbers_on_the_cpu_are_compared_there_and_nothing_is_copied_from_or_to_a_device(places):
    """As those that attention kernels of GPUs save; a copy from the meta device would be an error."""

    def compared(value, shape):
        words, tensors = _Words(), {"cpu": torch.tensor(value), "meta": torch.ones(shape, device="meta")}
        for number, place in enumerate(places):
            words.add(number, Saved(is_read=True), tensors[place])
        together, rest = words.checksum()
        assert together.device.type == "meta"
        return rest

    assert compared(7, 3) == compared(7, 3) != compared(8, 3)
    assert compared(-1, 3) != compared(-2, 3), "whose hashes in Python are equal"


@pytest.mark.parametrize("is_written", [True, False])
def test_a_number_on_the_cpu_that_a_kernel_elsewhere_did_not_write_is_not_compared(monkeypatch, is_written):
    """As the state of a generator that memory-efficient attention without dropout saves."""
    monkeypatch.setattr(unwritten, "WRITE_EVERYTHING", {"cpu"})
    hidden = torch.ones(3, device="meta")

    def compared(first, second):
        evidence = Evidence(hidden, Situation(LAYER))
        evidence.add(torch.ones(3, device="meta"))
        evidence.add(torch.tensor(first))
        evidence.finish({} if is_written else {1: 0})
        later = evidence.again(hidden)
        later.add(torch.ones(3, device="meta"))
        later.add(torch.tensor(second))
        return evidence._checksum[1] == later._words.checksum()[1]

    assert compared(7, 7)
    assert compared(7, 8) != is_written
