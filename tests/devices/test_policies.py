"""Every activation policy with every dynamics, precision and format of the states."""

import itertools

import pytest
import torch

import revformers as rf
from tests.devices.passes import POLICIES, assert_close, assert_exact, different, each_device, network, step

DYNAMICS = {
    "midpoint": rf.Midpoint(),
    "quarter": rf.BlendedMidpoint("1/4"),
    "leapfrog": rf.Leapfrog(),
    "hamiltonian": rf.Hamiltonian(),
    "two_evaluations": rf.TwoEvaluationMidpoint("1/2"),
}
PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast_bfloat16": (torch.float32, torch.bfloat16),
    "autocast_float16": (torch.float32, torch.float16),
}
STATES = ("int32", "int64")
DROPOUTS = {"no_dropout": 0.0, "dropout": 0.1}


def matrix():
    """All cases for a GPU; for the CPU each dynamics with one combination of the settings, and the others are slow.

    Two of them run by default, because other tests run most of this on the CPU.
    """
    settings = list(itertools.product(PRECISIONS, STATES, DROPOUTS))
    for number, dynamics in enumerate(DYNAMICS):
        for place, setting in enumerate(settings):
            on_cpu = [pytest.mark.slow]
            if place == 7 * number % len(settings):
                on_cpu = [] if dynamics in ("quarter", "hamiltonian") else [pytest.mark.thorough]
            for device, marks in (("cpu", on_cpu), ("cuda", [pytest.mark.gpu])):
                yield pytest.param(device, dynamics, *setting, id="-".join((device, dynamics, *setting)), marks=marks)


def configured(device, dynamics, precision, states, dropout):
    """A reversible model on a device, and the dtype of its autocast."""
    dtype, autocast = PRECISIONS[precision]
    return network(device, DYNAMICS[dynamics], states=states, dtype=dtype, dropout=DROPOUTS[dropout]), autocast


@pytest.mark.parametrize(("device", "dynamics", "precision", "states", "dropout"), matrix())
def test_every_policy_gives_the_stored_gradients_to_the_bit(
    deterministic, device, dynamics, precision, states, dropout
):
    model, autocast = configured(device, dynamics, precision, states, dropout)
    assert_exact(model, autocast=autocast)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("dynamics", ["quarter", "hamiltonian"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_ordinary_kernels_every_layer_is_evaluated_again_to_the_same_values(device, dynamics, precision):
    model, autocast = configured(device, dynamics, precision, "int32", "dropout")
    assert_close(model, 1e-5 if precision == "float32" else 2e-2, autocast=autocast)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("recompute", ["rebuild", "checkpoint"])
@pytest.mark.parametrize("dynamics", ["quarter", "hamiltonian"])
def test_budgets_from_the_smallest_to_one_that_stores_all(deterministic, device, dynamics, recompute):
    model = network(device, DYNAMICS[dynamics], states="int32", dtype=torch.bfloat16)
    stored = step(model, "store")
    layers = []
    for share in (1.0, 1.5, 3.0, 8.0, 100.0):
        assert not different(step(model, f"budget:{recompute}", share=share), stored)
        report = rf.budget_report(model)
        assert report.kept <= report.budget
        layers.append(report.stored)
    assert (layers[0], layers[-1]) == (0, 6)


def test_the_budget_of_these_tests_stores_some_layers_and_not_others():
    model = network("cpu", rf.Midpoint())
    step(model, POLICIES[3])
    assert 0 < rf.budget_report(model).stored < 6
