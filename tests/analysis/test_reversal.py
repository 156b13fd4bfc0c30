import pytest
import torch

import revformers as rf
from revformers.analysis.reversal import exact_reversal_errors, float_reversal_errors
from revformers.engine.fixed_point import INT64
from tests.analysis.networks import linear_steps, matrices, of_tiny

DYNAMICS = [rf.Midpoint(), rf.Leapfrog(), rf.BlendedMidpoint(0.5), rf.Hamiltonian()]


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=lambda dynamics: dynamics.name)
def test_the_librarys_inverse_is_exact_and_that_of_floats_is_not(dynamics):
    _, embedding, steps = of_tiny("llama", dynamics, torch.float32)
    n = len(steps)
    assert exact_reversal_errors(steps, embedding, "repeat", INT64) == [0.0] * (n + 2)
    errors = float_reversal_errors(steps, embedding, "repeat", torch.float32)
    coarse = float_reversal_errors(steps, embedding, "repeat", torch.bfloat16)
    assert len(errors) == n + 2
    assert errors[-2:] == coarse[-2:] == [0.0, 0.0]
    assert 1e-9 < errors[0] < 0.1
    assert coarse[0] > 10 * errors[0]


def test_a_field_that_is_not_repeatable_is_seen():
    """The negative control: the second evaluation of one layer is off by a little."""
    steps = linear_steps(matrices(3, 4, 0.5), rf.Midpoint())
    calls = []

    def unrepeatable(p):
        calls.append(1)
        return p + 1e-3 * len(calls)

    steps[1] = type(steps[1])("layer 1", 1, steps[1].coefficients, unrepeatable)
    errors = exact_reversal_errors(steps, torch.ones(1, 1, 4), "repeat", INT64)
    assert errors[-3] == 0
    assert errors[1] > 1e-4


def test_errors_of_blends_grow_by_one_over_a_each_layer():
    layers = [torch.zeros(16, 16, dtype=torch.float64)] * 12
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 1, 16, generator=generator, dtype=torch.float64)
    steps = linear_steps(layers, rf.BlendedMidpoint(0.3))
    errors = float_reversal_errors(steps, embedding.float(), "zero", torch.float32)
    ratio = (errors[1] / errors[7]) ** (1 / 6)
    assert ratio == pytest.approx(1 / float(steps[0].coefficients.previous), rel=0.3)


@pytest.mark.parametrize("inverse", [float_reversal_errors, exact_reversal_errors])
def test_the_ordinary_network_has_no_inverse(inverse):
    steps = linear_steps(matrices(2, 4, 0.5), rf.Residual())
    with pytest.raises(ValueError, match="no inverse"):
        inverse(steps, torch.ones(1, 1, 4), "repeat", torch.float32)
