"""The reference is NumPy's eigenvalues of the whole matrix; that of a layer comes from reverse-mode derivatives."""

import numpy as np
import pytest
import torch

import revformers as rf
from revformers.analysis.jacobian import DENSE_UP_TO, composed, extreme_eigenvalues, jacobian_product, token_block
from revformers.analysis.walk import differentiable_attention
from tests.analysis.networks import matrices, of_tiny

EXACT = {"tolerance": 0.0, "krylov": 120, "restarts": 100}


def extremes_of(values):
    return {
        "magnitude": max(abs(values)),
        "real_high": max(values.real),
        "real_low": min(values.real),
        "imaginary": max(values.imag),
    }


def assert_extreme(found, values):
    """Each found number is an eigenvalue, and as extreme as the most extreme one."""
    expected = extremes_of(values)
    assert all(min(abs(values - number)) < 1e-8 for number in found.found)
    assert abs(found.magnitude) == pytest.approx(expected["magnitude"], abs=1e-8)
    assert found.real_high.real == pytest.approx(expected["real_high"], abs=1e-8)
    assert found.real_low.real == pytest.approx(expected["real_low"], abs=1e-8)
    assert found.imaginary.imag == pytest.approx(expected["imaginary"], abs=1e-8)
    assert found.residual is not None
    assert found.residual < 1e-7


def whole(field, state):
    matrix = torch.autograd.functional.jacobian(field, state)
    return matrix.reshape(state.numel(), state.numel()).numpy()


@pytest.mark.parametrize("width", [6, 300])
def test_a_known_matrix(width):
    """Dense for a small one, by ARPACK for the other."""
    assert (width <= DENSE_UP_TO) == (width == 6)
    (matrix,) = matrices(1, width, 1.0)
    state = torch.ones(1, 1, width, dtype=torch.float64)
    product = jacobian_product(lambda p: p @ matrix.T + 3.0, state)
    assert_extreme(extreme_eigenvalues(product, state, **EXACT), np.linalg.eigvals(matrix.numpy()))


@pytest.mark.parametrize("length", [2, pytest.param(9, marks=pytest.mark.thorough)])
def test_a_layer_of_a_transformer(length):
    """Dense for a short sequence, by ARPACK for the other."""
    _, embedding, steps = of_tiny(length=length)
    assert (embedding.numel() <= DENSE_UP_TO) == (length == 2)
    with differentiable_attention():
        reference = whole(steps[1].field, embedding)
        product = jacobian_product(steps[1].field, embedding)
        vector = torch.randn(embedding.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert np.allclose(product(vector).flatten(), reference @ vector.flatten().numpy(), rtol=0, atol=1e-8)
        assert_extreme(extreme_eigenvalues(product, embedding, **EXACT), np.linalg.eigvals(reference))


def test_the_blocks_of_the_tokens_have_all_eigenvalues():
    _, embedding, steps = of_tiny(length=2)
    with differentiable_attention():
        reference = np.linalg.eigvals(whole(steps[0].field, embedding))
        blocks = [np.linalg.eigvals(token_block(steps[0].field, embedding, token, at_a_time=7)) for token in range(2)]
    values = np.concatenate(blocks)
    distances = abs(reference[:, None] - values[None, :])
    assert len(values) == len(reference)
    assert distances.min(0).max() < 1e-7
    assert distances.min(1).max() < 1e-7


def test_the_product_of_two_branches():
    _, embedding, steps = of_tiny(dynamics=rf.Hamiltonian(), length=2)
    with differentiable_attention():
        products = [jacobian_product(step.field, embedding) for step in steps[:2]]
        attention, mlp = (whole(step.field, embedding) for step in steps[:2])
        found = extreme_eigenvalues(composed(products[1], products[0]), embedding, **EXACT)
    values = np.linalg.eigvals(mlp @ attention)
    assert abs(found.magnitude) == pytest.approx(max(abs(values)), abs=1e-8)
    assert abs(found.magnitude) != pytest.approx(max(abs(np.linalg.eigvals(mlp))), abs=1e-3)


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        ctx.save_for_forward(values)
        return values**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        return 3 * values**2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (values,) = ctx.saved_tensors
        return 3 * values**2 * tangent


def test_a_field_without_a_second_derivative():
    state = torch.linspace(-1, 1, 5, dtype=torch.float64).view(1, 1, 5)

    def field(p):
        cubed = _NoSecondDerivative.apply(p)
        return cubed * 2

    product = jacobian_product(field, state)
    assert torch.allclose(product(torch.ones_like(state)), 6 * state**2, rtol=1e-12)


class _DroppedSecondDerivative(_NoSecondDerivative):
    @staticmethod
    def backward(ctx, gradient):
        (values,) = ctx.saved_tensors
        return 3 * values**2 * gradient.detach()


def test_a_second_derivative_that_is_dropped_without_an_error_is_seen():
    """Transposed twice, only the derivative of the square would be left."""
    state = torch.linspace(0.5, 1, 5, dtype=torch.float64).view(1, 1, 5)
    product = jacobian_product(lambda p: p**2 + _DroppedSecondDerivative.apply(p), state)
    assert torch.allclose(product(torch.ones_like(state)), 2 * state + 3 * state**2, rtol=1e-12)


def test_memory_that_runs_out_is_no_missing_derivative():
    def field(p):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        jacobian_product(field, torch.ones(1, 1, 5))


def test_a_field_that_does_not_depend_on_the_state():
    state = torch.ones(1, 1, 5)
    assert torch.equal(jacobian_product(lambda p: torch.zeros(1, 1, 5), state)(state), torch.zeros(1, 1, 5))


def test_an_eigenvalue_that_does_not_converge_is_none():
    (matrix,) = matrices(1, 300, 1.0)
    state = torch.ones(1, 1, 300, dtype=torch.float64)
    found = extreme_eigenvalues(lambda v: v @ matrix.T, state, tolerance=0.0, krylov=6, restarts=1)
    assert found.found == []
    assert found.magnitude is None
    assert found.residual is None


def test_a_field_that_is_zero_has_zero_eigenvalues():
    found = extreme_eigenvalues(torch.zeros_like, torch.zeros(1, 3, 100, dtype=torch.float64))
    assert found.found == [0j] * 4


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_product_that_is_not_finite_is_refused(tokens):
    state = torch.zeros(1, tokens, 100, dtype=torch.float64)
    assert (state.numel() <= DENSE_UP_TO) == (tokens == 1)
    with pytest.raises(ValueError, match="not finite"):
        extreme_eigenvalues(lambda v: v * torch.nan, state)


@pytest.mark.parametrize("size", [1e-6, 1e30])
def test_eigenvalues_far_from_1_are_as_accurate(size):
    """ARPACK alone is off by a part of the small ones, and stops at the large ones, whose squares overflow."""
    (matrix,) = matrices(1, 300, 1.0)
    state = torch.ones(1, 1, 300)
    scaled = (size * matrix / 300**0.5).float()
    found = extreme_eigenvalues(lambda tangent: tangent @ scaled.T, state, tolerance=1e-2)
    expected = extremes_of(np.linalg.eigvals(scaled.double().numpy()))
    assert abs(found.magnitude) == pytest.approx(expected["magnitude"], rel=0.03)
    assert found.real_low.real == pytest.approx(expected["real_low"], rel=0.03)
    assert found.imaginary.imag == pytest.approx(expected["imaginary"], rel=0.03)
    assert found.residual is not None
    assert found.residual < 0.03 * expected["magnitude"]
