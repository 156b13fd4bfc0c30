import pytest
import torch

import revformers as rf
from revformers.conversion.fit import NormalEquations
from revformers.hf.state import update_predictors
from tests.conversion.test_convert import TEXT, smooth_llama


def data(rows=400, features=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=generator, dtype=torch.float64) + 2
    target = inputs @ torch.randn(features, width, generator=generator, dtype=torch.float64) + 1
    return inputs, target + 0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def equations(inputs, target):
    sums = NormalEquations()
    for part, aim in zip(inputs.split(90), target.split(90), strict=True):
        sums.add(torch.cat([part, torch.ones(len(part), 1)], dim=1), aim, torch.ones_like(aim))
    return sums


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_reduced_rank_fit_is_the_best_of_its_rank(rank):
    """Against gradient descent on the two factors, which knows nothing of the closed form."""
    inputs, target = data()
    solution = equations(inputs, target).solve(rank)
    assert torch.linalg.matrix_rank(solution[:-1]) == rank
    ours = (inputs @ solution[:-1] + solution[-1] - target).square().mean().item()
    torch.manual_seed(rank)
    left, right = torch.randn(6, rank, dtype=torch.float64), torch.randn(rank, 4, dtype=torch.float64)
    bias = torch.zeros(4, dtype=torch.float64)
    parameters = [parameter.requires_grad_() for parameter in (left, right, bias)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (inputs @ left @ right + bias - target).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert ours == pytest.approx(loss().item(), rel=1e-3)


def test_the_full_fit_is_ordinary_least_squares():
    inputs, target = data()
    sums = equations(inputs, target)
    solution = sums.solve()
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    reference = torch.linalg.lstsq(design, target).solution
    assert torch.allclose(design @ solution, design @ reference, atol=0.1)
    left = (design @ solution - target).square().sum() / target.square().sum()
    assert sums.fit(solution).explained == pytest.approx(1 - left.item(), abs=1e-6)


def test_every_row_counts_by_its_error_relative_to_its_state():
    inputs, target = data()
    state = torch.linspace(0.1, 1000, len(target), dtype=torch.float64)[:, None].expand_as(target)
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    sums = NormalEquations()
    sums.add(design, target, state)
    size = state[:, :1]
    reference = torch.linalg.lstsq(design / size, target / size).solution
    weighted, even = (
        (design @ (solution - reference) / size).square().mean()
        for solution in (sums.solve(), torch.linalg.lstsq(design, target).solution)
    )
    assert weighted < 0.1 * even
    fit = sums.fit(reference)
    error = ((design @ reference - target) / size).square()
    assert fit.error == pytest.approx(error.mean().item())
    assert fit.explained == pytest.approx(1 - (error.sum() / (target / size).square().sum()).item())


@pytest.mark.parametrize("rank", [4, 31])
def test_a_predictor_of_low_rank_predicts_what_its_fit_says(rank):
    """The factors in the module are the fitted map: as many parameters as the rank needs, and the fit's own error."""
    model = smooth_llama()
    conversion = rf.convert(model, 0, TEXT, predictor=rf.PredictorForm(("state", "update"), rank))
    for predictor in update_predictors(model):
        assert predictor.output.weight.shape == (32, rank)
        assert predictor.maps[1].weight.shape == (rank, 32)
    full = rf.convert(smooth_llama(), 0, TEXT, predictor="update")
    assert conversion.added_parameters == 6 * (3 * 32 * rank + 32)
    assert conversion.fits[3].error >= full.fits[3].error
    assert rf.verify_gradients(model, {"input_ids": TEXT[:2]}).bit_exact
