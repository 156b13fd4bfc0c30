"""A budget on a plain stack of attention layers, without transformers."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import revformers as rf
from lab.private_api import cpu_allocations
from revformers.activations import Budget
from revformers.activations.budget.budgeted import smallest_budget
from revformers.engine.fixed_point import INT64
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.errors import UserError
from tests.engine.network import bound, trajectory_of

BATCH, TOKENS, WIDTH, HEADS, DEPTH = 2, 16, 16, 2, 12
DYNAMICS = [rf.Midpoint(), rf.BlendedMidpoint("1/4"), rf.Leapfrog(0.5, readout="mean")]
each_dynamics = pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.name)
each_recompute = pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
each_kind = pytest.mark.parametrize("scaled", [False, True], ids=["ends in a product", "ends in a scale"])
SHARES = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 100.0)
"""Budgets from the smallest to everything, as multiples of the smallest."""


class Layer(nn.Module):
    """Saves nothing behind its last product; with `scaled` it does."""

    def __init__(self, hidden_width, dropout, scaled):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH)) if scaled else None
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.up, self.down, self.dropout = (
            nn.Linear(WIDTH, hidden_width),
            nn.Linear(hidden_width, WIDTH),
            nn.Dropout(dropout),
        )

    def forward(self, hidden):
        query, key, value = self.attention(self.norm(hidden)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(-2)
        update = self.down(self.dropout(nn.functional.relu(self.up(hidden + mixed), inplace=True)))
        return update if self.scale is None else self.scale * update


class Network(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float32, hidden_widths=(2 * WIDTH,) * DEPTH, scaled=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(width, dropout, scaled) for width in hidden_widths).to(dtype)
        self.embedding = torch.randn(BATCH, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
        self.bound = {}

    def begin(self, dynamics, activations):
        """Bind a policy once; the first pass of a budget, which stores nothing, is behind it then."""
        key = dynamics, str(activations)
        if key not in self.bound:
            self.bound[key] = bound(activations, dynamics, len(self.layers))
            if isinstance(activations, Budget) and torch.is_grad_enabled():
                self(dynamics, activations)
                assert self.report.observed
        return self.bound[key]

    def forward(self, dynamics, activations, seed=1):
        begin = self.begin(dynamics, activations)
        torch.manual_seed(seed)
        self.trajectory = trajectory_of(dynamics, begin, self.embedding)
        for index, layer in enumerate(self.layers):
            self.trajectory.step(f"layer {index}", dynamics.coefficients(index), layer)
        self.report = self.trajectory.report
        readout = self.trajectory.readout()
        del self.trajectory
        return readout.float().square().sum()

    def gradients(self, loss, **options):
        trainable = [tensor for tensor in (self.embedding, *self.layers.parameters()) if tensor.requires_grad]
        return torch.autograd.grad(loss, trainable, **options)

    def smallest(self, dynamics, recompute="rebuild"):
        steps = dynamics.steps(len(self.layers))
        sizes = self.embedding.numel(), self.embedding.element_size(), INT64.dtype.itemsize
        return smallest_budget(*sizes, steps, may_rebuild=recompute == "rebuild")

    def budgets(self, dynamics, recompute="rebuild"):
        return [Budget(int(share * self.smallest(dynamics, recompute)), recompute) for share in SHARES]


def equal(left, right):
    return all(map(torch.equal, left, right))


@pytest.mark.thorough
@each_dynamics
@each_recompute
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@each_kind
def test_every_budget_gives_the_stored_gradients_to_the_bit(dynamics, recompute, dtype, dropout, scaled):
    network = Network(dropout, dtype, scaled=scaled)
    loss = network(dynamics, "store")
    stored, after = network.gradients(loss), torch.get_rng_state()
    for budget in network.budgets(dynamics, recompute):
        other = network(dynamics, budget)
        assert torch.equal(other, loss)
        assert equal(network.gradients(other), stored)
        assert torch.equal(torch.get_rng_state(), after), "the outer random stream must not move"


class Operations(FlopCounterMode):
    """Counts the operations of everything that runs, the attention kernel of CPUs included."""

    def __init__(self):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        super().__init__(
            display=False,
            custom_mapping={kernel: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)},
        )


@pytest.mark.thorough
@each_dynamics
@each_recompute
@each_kind
def test_the_more_budget_the_less_is_computed_again(dynamics, recompute, scaled):
    network = Network(scaled=scaled)

    def operations(activations):
        loss = network(dynamics, activations)
        with Operations() as counted:
            network.gradients(loss)
        return counted.get_total_flops()

    kept, computed = [], []
    for budget in network.budgets(dynamics, recompute):
        computed.append(operations(budget))
        assert network.report.kept <= budget.size
        kept.append(network.report.kept)
    assert kept[0] == network.smallest(dynamics, recompute)
    assert kept[0] < kept[3] < kept[5] < kept[-1]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == operations(recompute)
    assert computed[-1] == operations("store")
    assert len(set(computed)) > 4


def allocated_after(function):
    """The bytes that a call leaves allocated, from the allocator's events."""
    kept = []
    allocations = cpu_allocations(lambda: kept.append(function()))
    assert kept[0] is not None
    return sum(allocations)


@pytest.mark.thorough
@each_dynamics
@each_recompute
def test_what_is_kept_is_what_the_allocator_says(dynamics, recompute):
    """What the head of this network keeps is the same at every budget, so that the differences are the budget's own."""
    network = Network()
    rest = None
    for budget in network.budgets(dynamics, recompute)[::2]:
        network(dynamics, budget)  # buffers that are made once
        gc.collect()
        allocated = allocated_after(lambda budget=budget: network(dynamics, budget))
        rest = allocated - network.report.kept if rest is None else rest
        # A layer has some numbers of the size of a token or of one element that are not counted: none of them big.
        assert allocated - rest == pytest.approx(network.report.kept, abs=400 * DEPTH)


@pytest.mark.thorough
@each_recompute
def test_what_is_kept_shrinks_to_nothing(recompute):
    network = Network()
    for budget in network.budgets(rf.Midpoint(), recompute)[::3]:

        def run(budget=budget):
            return network.gradients(network(rf.Midpoint(), budget))

        run()
        gc.collect()
        gc.disable()
        try:
            gradients = sum(gradient.nbytes for gradient in run())
            assert allocated_after(run) <= gradients + 2**12, "freed without the garbage collector"
        finally:
            gc.enable()


def test_a_budget_below_what_rebuilding_keeps_is_refused():
    network, dynamics = Network(), rf.BlendedMidpoint("1/4")
    elements = BATCH * TOKENS * WIDTH
    assert network.smallest(dynamics) == 16 * elements + DEPTH * elements * 2 // 8
    assert network.smallest(dynamics, "checkpoint") == DEPTH * 4 * elements
    for recompute, message in (
        ("rebuild", "rebuilding or checkpointing alone keeps 9,728"),
        ("checkpoint", ": checkpointing alone keeps 24,576"),
    ):
        with pytest.raises(UserError, match=rf"too small for a batch of \[2, 16\] tokens.*{message} bytes"):
            network(dynamics, Budget(network.smallest(dynamics, recompute) - 1, recompute))


@each_dynamics
@pytest.mark.parametrize("state", ["previous", "current"])
@pytest.mark.parametrize("share", [1.0, 3.0, 12.0])
def test_one_unit_in_one_state_is_detected(dynamics, state, share, monkeypatch):
    network = Network(scaled=True)
    loss = network(dynamics, Budget(int(share * network.smallest(dynamics))))
    assert (network.report.stored > 0) == (share == 12)
    retreat = StatePair.retreat

    def corrupt(self, *arguments):
        retreat(self, *arguments)
        getattr(self, state)[0, 1, 2] += 1
        monkeypatch.setattr(StatePair, "retreat", retreat)

    monkeypatch.setattr(StatePair, "retreat", corrupt)
    with pytest.raises(rf.RebuildMismatchError, match=r"Layer \d+ was evaluated again .* deterministic"):
        network.gradients(loss)


@pytest.mark.parametrize("share", [1.0, 3.0, 5.0, 12.0, 100.0])
@pytest.mark.parametrize("layer", [0, DEPTH - 2])
@pytest.mark.parametrize("part", ["attention", "up", "down"])
def test_weights_changed_between_forward_and_backward_are_detected(share, layer, part):
    network = Network()
    loss = network(rf.Midpoint(), Budget(int(share * network.smallest(rf.Midpoint()))))
    with torch.no_grad():
        getattr(network.layers[layer], part).weight.mul_(1.001)
    message = r"of layer \d+ was changed .*weight \[.*\] was changed|modified by an inplace operation"
    with pytest.raises((rf.RebuildMismatchError, RuntimeError), match=message):
        network.gradients(loss)


@pytest.mark.thorough
@each_recompute
@pytest.mark.parametrize("layer", [0, DEPTH - 2])
@pytest.mark.parametrize("part", ["attention", "up"])
def test_a_layer_that_does_not_repeat_itself_is_detected(recompute, layer, part):
    network = Network()
    stored = network.gradients(network(rf.Midpoint(), "store"))
    found = 0
    for budget in network.budgets(rf.Midpoint(), recompute):
        loss = network(rf.Midpoint(), budget)
        handle = getattr(network.layers[layer], part).register_forward_hook(lambda _, __, output: output * 1.0001)
        if layer >= DEPTH - network.report.stored:
            assert equal(network.gradients(loss), stored), "a stored layer is not evaluated again"
        else:
            with pytest.raises(rf.RebuildMismatchError, match=r"Layer \d.*the forward hook <lambda> of \w+ was added"):
                network.gradients(loss)
            found += 1
        handle.remove()
    assert found > 2


@each_recompute
@pytest.mark.parametrize("share", [1.0, 2.0, 8.0, 100.0])
def test_retained_graphs_and_partial_gradients(recompute, share):
    network, dynamics = Network(dropout=0.3), rf.BlendedMidpoint("1/2")
    budget = Budget(int(share * network.smallest(dynamics, recompute)), recompute)
    stored = network.gradients(network(dynamics, "store"))
    loss = network(dynamics, budget)
    middle = list(network.layers[3].parameters())
    partial = torch.autograd.grad(loss, middle, retain_graph=True)
    assert equal(partial, stored[1 + 3 * len(middle) : 1 + 4 * len(middle)])
    assert equal(network.gradients(loss, retain_graph=True), stored)
    assert equal(torch.autograd.grad(loss, middle, retain_graph=True), partial)
    assert equal(network.gradients(loss), stored)


@pytest.mark.thorough
@each_recompute
def test_two_forward_passes_before_one_backward(recompute):
    network, dynamics = Network(dropout=0.3), rf.Leapfrog()
    stored = network.gradients(network(dynamics, "store", 1) + network(dynamics, "store", 2))
    for budget in network.budgets(dynamics, recompute):
        both = network(dynamics, budget, 1) + network(dynamics, budget, 2)
        assert equal(network.gradients(both), stored)


@pytest.mark.thorough
@each_recompute
@pytest.mark.parametrize("frozen", [[0], [0, 1, 2], [DEPTH - 1], list(range(DEPTH - 1))], ids=str)
@pytest.mark.parametrize("embedding", [True, False], ids=["embedding trains", "embedding frozen"])
def test_frozen_layers(recompute, frozen, embedding):
    network, dynamics = Network(dropout=0.3), rf.BlendedMidpoint("1/4")
    network.embedding.requires_grad_(embedding)
    for index in frozen:
        network.layers[index].requires_grad_(False)
    stored = network.gradients(network(dynamics, "store"))
    for budget in network.budgets(dynamics, recompute):
        assert equal(network.gradients(network(dynamics, budget)), stored)
        assert network.report.kept <= budget.size


@pytest.mark.thorough
@each_recompute
@pytest.mark.parametrize("hidden_widths", [[16] * 2 + [128] * 10, [128] * 2 + [16] * 10, [*[16] * 8, 400, 16, 16, 16]])
def test_layers_that_differ_do_not_break_the_budget(recompute, hidden_widths):
    network, dynamics = Network(hidden_widths=hidden_widths, scaled=True), rf.Midpoint()
    stored = network.gradients(network(dynamics, "store"))
    for budget in network.budgets(dynamics, recompute):
        loss = network(dynamics, budget)
        assert network.report.kept <= budget.size
        assert equal(network.gradients(loss), stored)


@pytest.mark.thorough
def test_autocast_is_replayed_outside_its_block():
    network = Network(dropout=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        stored = network(rf.Midpoint(), "store")
        losses = [network(rf.Midpoint(), budget) for budget in network.budgets(rf.Midpoint())]
    stored = network.gradients(stored)
    assert all(equal(network.gradients(loss), stored) for loss in losses)


@pytest.mark.thorough
def test_an_interrupted_backward_pass_can_be_run_again():
    network, dynamics = Network(), rf.Midpoint()
    stored = network.gradients(network(dynamics, "store"))
    for budget in network.budgets(dynamics):
        loss = network(dynamics, budget)
        if network.report.stored:
            break
        handle = network.layers[1].up.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(rf.RebuildMismatchError, match=r"Layer 1 cannot be evaluated again \(ZeroDivisionError"):
            network.gradients(loss, retain_graph=True)
        handle.remove()
        assert equal(network.gradients(loss), stored)


def test_only_the_graph_keeps_the_states_and_backward_frees_them(monkeypatch):
    network, dynamics = Network(scaled=True), rf.Midpoint()
    tapes, make = [], Tape.__init__

    def remember(self, states, **options):
        make(self, states, **options)
        tapes.append(weakref.ref(self))

    for share, alive in ((2.0, True), (100.0, False)):
        budget = Budget(int(share * network.smallest(dynamics)))
        network.begin(dynamics, budget)
        gc.disable()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(Tape, "__init__", remember)
                loss = network(dynamics, budget)
            assert any(tape() is not None for tape in tapes) == alive, "nothing is rebuilt where all is stored"
            network.gradients(loss)
            assert all(tape() is None for tape in tapes)
        finally:
            gc.enable()


def test_the_first_pass_of_a_batch_shape_is_observed_and_smaller_ones_need_none():
    network, dynamics = Network(), rf.Midpoint()
    budget, stored = Budget("1GiB"), []
    begin = bound(budget, dynamics, DEPTH)
    for shape in ((2, 8), (2, 8), (1, 8), (2, 9), (2, 9), (1, 9)):
        trajectory = trajectory_of(dynamics, begin, torch.randn(*shape, WIDTH, requires_grad=True))
        for index, layer in enumerate(network.layers):
            trajectory.step(f"layer {index}", dynamics.coefficients(index), layer)
        stored.append(trajectory.report.stored)
        assert trajectory.report.observed == (not trajectory.report.stored)
    assert stored == [0, DEPTH, DEPTH, 0, DEPTH, DEPTH]


def test_a_smaller_batch_than_the_observed_one_fits_a_budget_that_has_shrunk(monkeypatch):
    """A share of free memory may be less than the inputs of the observed batch, and enough for those of this one."""
    network, dynamics = Network(), rf.Residual()
    begin = bound(Budget(0.5, "checkpoint"), dynamics, DEPTH)
    stored = []
    for batch, free in ((8, 2**30), (1, 2 * DEPTH * TOKENS * WIDTH * 4)):
        monkeypatch.setattr("revformers.activations.budget.budget._free_bytes", lambda _, free=free: free)
        trajectory = trajectory_of(dynamics, begin, torch.randn(batch, TOKENS, WIDTH, requires_grad=True))
        for index, layer in enumerate(network.layers):
            trajectory.step(f"layer {index}", dynamics.coefficients(index), layer)
        stored.append(trajectory.report.stored)
        assert trajectory.report.kept <= free // 2
    assert stored == [0, 0]
    assert not trajectory.report.observed


def test_training_and_evaluation_modes_are_observed_apart():
    network, dynamics = Network(dropout=0.3), rf.Midpoint()
    budget = Budget("1GiB")
    network(dynamics, budget)
    network.eval()
    network(dynamics, budget)
    assert network.report.observed
    for mode in (network.train, network.eval) * 2:
        mode()
        network(dynamics, budget)
        assert network.report.stored == DEPTH


@pytest.mark.parametrize("change", ["a weight trains", "dropout works"])
def test_modules_that_changed_are_observed_anew(change):
    network, dynamics = Network(dropout=0.3), rf.Midpoint()
    network.layers[DEPTH - 1].requires_grad_(False)
    network.layers[DEPTH - 1].eval()
    budget = Budget("1GiB")
    network(dynamics, budget)
    assert network.report.stored == DEPTH
    if change == "a weight trains":
        network.layers[DEPTH - 1].requires_grad_(True)
    else:
        network.layers[DEPTH - 1].train()
    loss = network(dynamics, budget)
    assert (network.report.stored, network.report.inputs_kept) == (DEPTH - 1, 1)
    stored = network.gradients(network(dynamics, "store"))
    assert equal(network.gradients(loss), stored)
    network(dynamics, budget)
    assert network.report.observed
    network(dynamics, budget)
    assert network.report.stored == DEPTH


def test_no_gradients_no_budget():
    network = Network()
    with torch.no_grad():
        network(rf.Midpoint(), Budget(1))
    assert network.report is None


def test_a_narrow_layer_that_does_not_repeat_itself_is_detected():
    """Heads may be narrower together than the stream; what a branch saves last is then smaller than its input."""
    narrow, wide = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH // 2, WIDTH)
    dynamics, embedding = rf.Midpoint(), torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    budget = Budget(DEPTH * embedding.nbytes, "checkpoint")
    trajectory = trajectory_of(dynamics, bound(budget, dynamics, DEPTH), embedding)
    for index in range(DEPTH):
        trajectory.step(f"layer {index}", dynamics.coefficients(index), lambda hidden: wide(narrow(hidden)))
    loss = trajectory.readout().square().sum()
    narrow.register_forward_hook(lambda _, __, output: output * 1.0001)
    with pytest.raises(rf.RebuildMismatchError, match="deterministic"):
        torch.autograd.grad(loss, embedding)
