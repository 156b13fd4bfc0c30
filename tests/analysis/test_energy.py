import pytest
import torch

import revformers as rf
from revformers.analysis.energy import invariants, mean_squares, update_mean_squares
from revformers.analysis.walk import walk
from tests.analysis.networks import linear_steps, matrices


def drift(kind, dynamics, layers=30, scale=0.05):
    """The largest relative change of the invariant; all layers are the same matrix."""
    (matrix,) = matrices(1, 6, scale, kind=kind)
    if kind == "symmetric":
        matrix = -matrix @ matrix  # negative eigenvalues
    steps = linear_steps([matrix] * layers, dynamics)
    generator = torch.Generator().manual_seed(0)
    states = walk(steps, torch.randn(1, 1, 6, generator=generator, dtype=torch.float64), "zero")
    values = invariants(steps, states)
    assert len(values) == layers
    return max(abs(value - values[0]) for value in values) / abs(values[0])


@pytest.mark.parametrize(
    ("dynamics", "kind", "other"),
    [(rf.Leapfrog(), "symmetric", "antisymmetric"), (rf.Midpoint(), "antisymmetric", "symmetric")],
)
def test_what_is_conserved_and_by_which_fields(dynamics, kind, other):
    assert drift(kind, dynamics) < 1e-8
    assert drift(other, dynamics, scale=0.2) > 1e-2


def test_branches_conserve_their_symplectic_form_if_they_are_symmetric():
    drift = {}
    for kind in ("symmetric", "general"):
        pair = list(matrices(2, 6, 0.2, kind=kind))
        steps = linear_steps(pair * 10, rf.Hamiltonian())
        states = walk(steps, torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0)).double(), "zero")
        values = invariants(steps, states, "branch")
        assert len(values) == 10
        q, p, next_q, next_p = (state.flatten() for state in states[:4])
        assert values[0] == pytest.approx(((q @ next_p - p @ next_q) / 6).item(), rel=1e-12)
        drift[kind] = max(abs(value - values[0]) for value in values) / abs(values[0])
    assert drift["symmetric"] < 1e-8
    assert drift["general"] > 1e-2


def test_a_cosine_has_the_energy_of_its_frequency():
    angle = torch.tensor(0.3, dtype=torch.float64)
    value = 2 * (torch.cos(angle) - 1)  # leapfrog's lambda of this frequency
    steps = linear_steps([value.view(1, 1)] * 8, rf.Leapfrog())
    states = [torch.cos(place * angle).view(1, 1, 1) for place in range(10)]
    assert walk(steps, states[1], "zero")[1] == states[1]
    assert invariants(steps, states) == pytest.approx([torch.sin(angle).item() ** 2] * 8, rel=1e-12)


def test_there_is_none_for_blends_signs_that_alternate_and_the_ordinary_network():
    by_branch = rf.Leapfrog(granularity="branch")
    for dynamics in (rf.BlendedMidpoint(0.5), rf.BlendedMidpoint([1, -1]), rf.Residual(), by_branch):
        steps = linear_steps(matrices(2, 3, 0.1), dynamics)
        states = walk(steps, torch.ones(1, 1, 3, dtype=torch.float64), "repeat")
        assert invariants(steps, states, dynamics.granularity) is None


def test_mean_squares():
    assert mean_squares([torch.tensor([3.0, 4.0])]) == [12.5]
    steps = linear_steps([2 * torch.eye(2), 3 * torch.eye(2)], rf.Midpoint())
    states = [torch.zeros(1, 1, 2), torch.ones(1, 1, 2), 2 * torch.ones(1, 1, 2), torch.zeros(1, 1, 2)]
    assert update_mean_squares(steps, states, torch.float32) == [4.0, 36.0]
