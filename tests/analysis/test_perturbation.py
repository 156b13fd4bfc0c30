"""The reference of growth is the matrix that a linear network multiplies its pair by."""

import itertools

import pytest
import torch

import revformers as rf
from revformers.analysis.linear import forward_growth
from revformers.analysis.perturbation import growth_backwards, growth_forwards
from revformers.analysis.walk import differentiable_attention, walk
from tests.analysis.networks import linear_steps, matrices, of_tiny

WIDTH = 4
DYNAMICS = [rf.Midpoint(), rf.Leapfrog(0.7), rf.BlendedMidpoint(0.5), rf.BlendedMidpoint(-0.25)]


def pair_matrix(dynamics, matrix):
    """The matrix that takes (p[l-1], p[l]) to (p[l], p[l+1])."""
    step = dynamics.coefficients(0)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    below = [float(step.previous) * eye, float(step.current) * eye + step.update * matrix]
    return torch.cat([torch.cat([0 * eye, eye], 1), torch.cat(below, 1)])


def drawn(seed):
    return torch.randn(1, 1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).flatten()


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_growth_of_a_linear_network(dynamics):
    layers = matrices(5, WIDTH, 0.6)
    steps = linear_steps(layers, dynamics)
    states = [torch.zeros(1, 1, WIDTH, dtype=torch.float64)] * 7
    start = torch.cat([drawn(3), drawn(3)])
    generator = torch.Generator().manual_seed(3)
    end = torch.randn(2, WIDTH, dtype=torch.float64, generator=generator).flatten()
    expected, reverse = [1.0], [1.0]
    forwards, backwards = start, end
    for matrix in layers:
        forwards = pair_matrix(dynamics, matrix) @ forwards
        expected.append((forwards.norm() / start.norm()).item())
    for matrix in reversed(layers):
        backwards = torch.linalg.solve(pair_matrix(dynamics, matrix), backwards)
        reverse.append((backwards.norm() / end.norm()).item())
    assert growth_forwards(steps, states, "repeat", torch.float64, probes=1, seed=3) == pytest.approx(
        expected, rel=1e-8
    )
    assert growth_backwards(steps, states, torch.float64, probes=1, seed=3) == pytest.approx(reverse, rel=1e-8)


def test_an_eigenvector_grows_as_its_closed_form():
    """A multiple of the identity has one eigenvalue, so that any direction follows the test equation."""
    dynamics, value = rf.Midpoint(), 0.5
    steps = linear_steps([value * torch.eye(WIDTH, dtype=torch.float64)] * 60, dynamics)
    states = [torch.zeros(1, 1, WIDTH, dtype=torch.float64)] * 62
    growth = growth_forwards(steps, states, "repeat", torch.float64)
    assert growth[-1] / growth[-2] == pytest.approx(forward_growth(dynamics.coefficients(0), value), rel=1e-8)


def test_several_probes_give_the_root_of_the_mean_of_squares():
    steps = linear_steps(matrices(3, WIDTH, 0.6), rf.Leapfrog())
    states = [torch.zeros(1, 1, WIDTH, dtype=torch.float64)] * 5
    one, other = (growth_forwards(steps, states, "zero", torch.float64, probes=1, seed=seed) for seed in (5, 6))
    assert one[-1] != pytest.approx(other[-1], rel=0.1)
    both = growth_forwards(steps, states, "zero", torch.float64, probes=2, seed=5)
    assert both == pytest.approx([((x**2 + y**2) / 2) ** 0.5 for x, y in zip(one, other, strict=True)], rel=1e-8)


def test_growth_beyond_the_range_of_float32():
    """Perturbations are scaled back, so the dtype of the fields does not bound their growth, nor their decay."""
    value = 1000 * torch.eye(WIDTH)
    step = rf.Midpoint().coefficients(0)
    states = [torch.zeros(1, 1, WIDTH)] * 32
    growth = growth_forwards(linear_steps([value] * 30, rf.Midpoint()), states, "repeat", torch.float32)
    assert growth[-1] > 1e80
    assert growth[-1] / growth[-2] == pytest.approx(forward_growth(step, 1000.0), rel=1e-6)
    shrinking = growth_forwards(
        linear_steps([-0.999 * torch.eye(WIDTH)] * 30, rf.Residual()), states, "zero", torch.float32
    )
    assert shrinking[-1] == pytest.approx(1e-3**29, rel=1e-2)


def test_a_small_difference_of_two_runs_grows_as_much():
    dynamics = rf.Leapfrog(0.5)
    _, embedding, steps = of_tiny(dynamics=dynamics)
    direction = torch.randn(embedding.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = walk(steps, embedding, "repeat")
    other = walk(steps, embedding + 1e-6 * direction, "repeat")
    sizes = [((a - b).square().sum()).item() for a, b in zip(states, other, strict=True)]
    pairs = [(x + y) ** 0.5 for x, y in itertools.pairwise(sizes)]
    with differentiable_attention():
        found = growth_forwards(steps, states, "repeat", torch.float64, probes=1, seed=0)
    assert found == pytest.approx([size / pairs[0] for size in pairs], rel=1e-3)


def test_the_ordinary_network_has_no_inverse():
    steps = linear_steps(matrices(2, WIDTH, 0.5), rf.Residual())
    with pytest.raises(ValueError, match="no inverse"):
        growth_backwards(steps, [torch.zeros(1, 1, WIDTH)] * 4, torch.float32)
