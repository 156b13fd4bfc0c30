from fractions import Fraction

import pytest
import torch

import revformers as rf
from revformers.conversion.calibration import as_batches, split_off
from revformers.conversion.convert import Converter, Method
from revformers.conversion.fit import LastUpdate, NormalEquations, Solution
from revformers.dynamics.compensation import leads
from revformers.models.parts import update_predictors
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
    solution = equations(inputs, target).solve(rank).maps
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
    solution = sums.solve().maps
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    reference = torch.linalg.lstsq(design, target).solution
    difference = (design @ (solution - reference)).square().mean()
    assert difference < 5e-3 * (design @ reference - target).square().mean()
    left = (design @ solution - target).square().sum() / target.square().sum()
    assert sums.fit(Solution(solution)).explained == pytest.approx(1 - left.item(), abs=1e-6)


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
        for solution in (sums.solve().maps, torch.linalg.lstsq(design, target).solution)
    )
    assert weighted < 0.1 * even
    fit = sums.fit(Solution(reference))
    error = ((design @ reference - target) / size).square()
    assert fit.error == pytest.approx(error.mean().item())
    assert fit.explained == pytest.approx(1 - (error.sum() / (target / size).square().sum()).item())


@pytest.mark.thorough
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


@pytest.mark.parametrize("told", [0.0, 0.8])
def test_the_multiple_of_the_update_is_fitted_with_the_maps(told):
    """Against least squares on all of it at once, whether the features tell a part of the update or none."""
    inputs, target = data()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(inputs), 4, generator=generator, dtype=torch.float64)
    update = told * inputs @ torch.ones(6, 4, dtype=torch.float64) + noise
    target = target + 0.3 * update
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    sums = NormalEquations()
    sums.add(design, target, torch.ones_like(target), update)
    solution = sums.solve()
    # One coefficient of the update is shared by all outputs: a regression of 4 x 7 + 1 unknowns on all numbers.
    blocks = torch.kron(design, torch.eye(4, dtype=torch.float64))
    reference = torch.linalg.lstsq(torch.cat([blocks, update.reshape(-1, 1)], dim=1), target.reshape(-1)).solution
    assert solution.multiple == pytest.approx(reference[-1].item(), rel=2e-2)
    assert solution.multiple == pytest.approx(0.3, abs=0.05)
    error = (design @ solution.maps + solution.multiple * update - target).square()
    fit = sums.fit(solution)
    assert fit.error == pytest.approx(error.mean().item())
    assert fit.explained == pytest.approx(1 - (error.sum() / target.square().sum()).item())
    assert sums.fit(Solution(solution.maps, 0.0)).error > fit.error


@pytest.mark.thorough
def test_the_first_step_is_the_least_squares_fit_of_the_state_that_is_ahead():
    """All of it by hand, from the states of the ordinary network: p[0] is x, and p[1] is x + f(x)."""
    model, original = smooth_llama(), smooth_llama()
    converter = Converter(model, Method("uniform", rf.PredictorForm(("state",))), TEXT)
    conversion = converter.convert(1)
    ids = torch.cat([batch["input_ids"] for batch in split_off(as_batches(TEXT, model))[0]])
    with torch.no_grad():
        states = original(ids, output_hidden_states=True).hidden_states
    x, end = (state.double().flatten(0, 1) for state in states[:2])
    share = leads([Fraction(1, 2)] * 6, converter._costs.lead_parts)[1]
    assert share > 0.1
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    weight = 1 / end.square().mean(dim=1, keepdim=True).sqrt()

    def fitted(features, target):
        design = torch.cat([features, ones], dim=1)
        return design @ torch.linalg.lstsq(weight * design, weight * target).solution

    # What the state does not tell of its last update is what the aim is ahead by: aim - share (aim - x - u(aim)) = end.
    told = torch.linalg.lstsq(weight * torch.cat([end, ones], dim=1), weight * (end - x)).solution
    inverse = torch.linalg.inv((1 - share) * torch.eye(32, dtype=torch.float64) + share * told[:-1])
    aim = (end - share * (x + told[-1])) @ inverse
    update = end - x
    rest, target = (weight * (value - fitted(x, value)) for value in (update, aim - x))
    step_size = ((rest * target).sum() / rest.square().sum()).item()
    assert step_size > 1.02
    assert conversion.dynamics.step_size[0] == pytest.approx(step_size, abs=0.1 * (step_size - 1))
    with torch.no_grad():
        correction = update_predictors(model)[0]([x.float()]).double()
    off = weight * (x + conversion.dynamics.step_size[0] * update + correction - aim)
    least = target - step_size * rest
    assert off.square().mean() == pytest.approx(least.square().mean().item(), rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_state_is_ahead_by_the_share_of_what_is_left_of_its_last_update(share):
    torch.manual_seed(0)
    map_, constant = 0.3 * torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    original, before = torch.randn(2, 7, 5, dtype=torch.float64)
    state = LastUpdate(map_, constant).ahead_by(share)(original, before)
    left = (state - before) - (state @ map_ + constant)
    assert torch.allclose(state - share * left, original)
    assert (share == 0) == torch.allclose(state, original)
