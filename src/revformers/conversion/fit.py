"""The fit of update predictors, layer by layer and in closed form.

Related work: Ghosted Layers (arXiv 2605.15491) solves such a regression where layers were removed; NBL (2505.21077) and
ReplaceMe (2505.02819) replace layers by fitted linear maps. Here no layer is removed: the map predicts the update
before a state, so that the step keeps its exact inverse. docs/science/prior-art.md has more.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from revformers.conversion.measure import Batch
from revformers.conversion.trajectories import Trajectories
from revformers.conversion.unfinished import Stage
from revformers.dynamics.base import Coefficients
from revformers.models.update_predictor import UpdatePredictor

RIDGE = 1e-3
"""Ridge of the regression, relative to the mean square of each feature."""


@dataclass(frozen=True)
class LayerFit:
    """The quality of one layer's predictor, on text that was set aside from the fit if there is any.

    Attributes:
        explained: fraction of the squared distance to the step's target state that the predictor and the fitted step
            size remove; 1 is all of it, and below 0 they increase the distance.
        error: remaining squared distance relative to the square of the ordinary network's state, mean over tokens.
        largest_token: root mean square of the largest of these states, relative to the median token's.

    """

    explained: float
    error: float
    largest_token: float


@dataclass(frozen=True)
class LastUpdate:
    """The prediction of the ordinary network's last update from p[l]: u = p[l] K + k, one token per row.

    Attributes:
        map: K, float64[width, width].
        constant: k, float64[width].

    """

    map: Tensor
    constant: Tensor

    def ahead_by(self, share: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (q, before) -> p with p - share (p - before - u(p)) = q, all float64[tokens, width].

        p is ahead of q by a share, at least 0 and below 1, of the last update minus u (`dynamics.compensation`). q is
        the state of the ordinary network, `before` the converted network's state before p.
        """
        identity = torch.eye(len(self.constant), dtype=torch.float64)
        inverse = torch.linalg.inv((1 - share) * identity + share * self.map)
        return lambda original, before: (original - share * (before + self.constant)) @ inverse


@torch.no_grad()
def fit_last_updates(
    model: nn.Module,
    predictors: Sequence[UpdatePredictor],
    batches: Sequence[Batch],
    progress: Callable[[int], None] = lambda layer: None,
    stage: Stage | None = None,
) -> list[LastUpdate]:
    """Fit the prediction of each layer's last update from the ordinary network's state, by weighted ridge regression.

    Args:
        model: a reversible model that the predictors belong to.
        predictors: one per layer, of the form ``("state",)``; they are set to the fits.
        batches: as for `fit_update_predictors`.
        progress: called with each layer's number after its fit; not for layers that `stage` already holds.
        stage: the results of finished layers, to which new ones are added.

    """

    def fit(states: Trajectories, layer: int) -> dict[str, Tensor]:
        sums = NormalEquations()
        for index in range(len(batches)):
            current = states.current[index].double()
            sums.add(_with_constant([current]), current - states.previous[index].double(), current)
            states.evaluate(layer, index, original_only=True)
            states.advance(index, states.original[index])
        _set(predictors[layer], solution := sums.solve().maps)
        return {"solution": solution}

    found = _layer_by_layer(model, predictors, batches, fit, progress, stage or Stage())
    return [LastUpdate(done["solution"][:-1], done["solution"][-1]) for done in found]


@torch.no_grad()
def fit_update_predictors(
    model: nn.Module,
    predictors: Sequence[UpdatePredictor],
    coefficients: Sequence[Coefficients],
    shares: Sequence[float],
    last_updates: Sequence[LastUpdate],
    batches: Sequence[Batch],
    set_aside: Sequence[Batch] = (),
    progress: Callable[[int], None] = lambda layer: None,
    stage: Stage | None = None,
) -> tuple[list[LayerFit], list[float]]:
    """Fit every layer's predictor along the converted network's trajectory, so that later ones correct early errors.

    The target of a step is a state that is ahead of the ordinary network's by a share of the part of its last update
    that the state does not predict: the share that the next blend takes away. The fit is a ridge regression on the
    features of the predictor's form and a constant, in closed form, with sums in float64. If the form does not read the
    update, the step size is fitted as well: to be ahead by a share of an update that the state does not predict needs a
    larger step, up to that of `dynamics.compensation.compensating_step_sizes` if it predicts none of the update.

    Every token is weighted by the inverse size of its state: a trained network has a few tokens whose states are a
    thousand times larger than the others', and these would dominate the fit. Every layer is evaluated twice per token,
    on the original's states and on the converted ones.

    Args:
        model: the reversible model that the predictors belong to.
        predictors: one per layer, overwritten.
        coefficients: a, b and c of every layer.
        shares: the leads of p[0], ..., p[L]; see `dynamics.compensation.leads`.
        last_updates: for every layer the prediction of the last update from p[l].
        batches: inputs of the model, e.g. ``{"input_ids": int64[batch, tokens]}``; without padding.
        set_aside: further batches to evaluate the fits on; if empty, they are evaluated on `batches`.
        progress: called with each layer's number after its fit; not for layers that `stage` already holds.
        stage: the results of finished layers, to which new ones are added.

    Returns:
        The quality of each layer's step, and its step size.

    """
    text = [*batches, *set_aside]

    def fit(states: Trajectories, layer: int) -> dict[str, Tensor]:
        fitted, judged = NormalEquations(), NormalEquations()
        predictor, step, share = predictors[layer], coefficients[layer], shares[layer + 1]
        names = predictor.form.features
        ahead = last_updates[layer + 1].ahead_by(share) if share else None
        for index in range(len(text)):
            states.evaluate(layer, index)
            original = states.original[index].double()
            aim = original if ahead is None else ahead(original, states.current[index].double())
            features = _with_constant([feature.double() for feature in states.features(index, names)])
            sums = fitted if index < len(batches) else judged
            update = None if "update" in names else states.update[index].double()
            sums.add(features, aim - states.blended(index, step).double(), original, update)
        solution = fitted.solve(predictor.form.rank)
        _set(predictor, solution.maps)
        step = dataclasses.replace(step, update=step.update + solution.multiple)
        for index in range(len(text)):
            place = predictor.bias.device
            correction = predictor([value.to(place) for value in states.features(index, names)])
            successor = states.blended(index, step) + correction.to("cpu", torch.float32)
            states.advance(index, successor)
        quality = dataclasses.astuple((judged if set_aside else fitted).fit(solution))
        return {
            "solution": solution.maps,
            "quality": torch.tensor(quality, dtype=torch.float64),
            "step_size": torch.tensor(step.update, dtype=torch.float64),
        }

    found = _layer_by_layer(model, predictors, text, fit, progress, stage or Stage())
    return [LayerFit(*done["quality"].tolist()) for done in found], [done["step_size"].item() for done in found]


def _layer_by_layer(
    model: nn.Module,
    predictors: Sequence[UpdatePredictor],
    text: Sequence[Batch],
    fit: Callable[[Trajectories, int], dict[str, Tensor]],
    progress: Callable[[int], None],
    stage: Stage,
) -> list[dict[str, Tensor]]:
    """Fit the predictors of all layers, in order.

    Args:
        model: as for `fit_update_predictors`.
        predictors: as for `fit_update_predictors`.
        text: the batches whose states are followed.
        fit: takes the states before a layer and its number, sets the layer's predictor, advances the states past the
            layer, and returns the predictor's maps as "solution" and further results.
        progress: as for `fit_update_predictors`.
        stage: as for `fit_update_predictors`.

    Returns:
        The results for each layer, from this run or an earlier one.

    """
    found = []
    with tempfile.TemporaryDirectory(prefix="revformers-") as folder:
        states = Trajectories(model, text, Path(folder))
        states.restore(stage.states())
        for layer, predictor in enumerate(predictors):
            done = stage.result(layer)
            if done is None:
                done = fit(states, layer)
                stage.save(layer, done, states.states, last=layer == len(predictors) - 1)
                progress(layer)
            else:
                _set(predictor, done["solution"])
            found.append(done)
    return found


def _with_constant(features: Sequence[Tensor]) -> Tensor:
    """Return features, each float64[rows, width], side by side, followed by a column of ones."""
    return torch.cat([*features, torch.ones(len(features[0]), 1, dtype=torch.float64)], dim=1)


class NormalEquations:
    """The sums of a ridge regression, in float64; their memory does not depend on the number of rows.

    Every row is divided by the root mean square of its state.
    """

    def __init__(self) -> None:
        self._gram: Tensor | float = 0.0
        self._moment: Tensor | float = 0.0
        self._target_squares = 0.0
        self._update_moment: Tensor | float = 0.0
        self._update_target = self._update_squares = 0.0
        self._elements = 0
        self._sizes: list[Tensor] = []

    def add(self, features: Tensor, target: Tensor, state: Tensor, update: Tensor | None = None) -> None:
        """Add rows.

        Args:
            features: float64[rows, n].
            target: float64[rows, width].
            state: the states that the rows belong to, float64[rows, width].
            update: float64[rows, width], a multiple of which is fitted together with the features; None fits none.

        """
        size = state.square().mean(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        self._sizes.append(size)
        features, target = features / size, target / size
        self._gram = self._gram + features.T @ features
        self._moment = self._moment + features.T @ target
        self._target_squares += target.square().sum().item()
        self._elements += target.numel()
        if update is not None:
            update = update / size
            self._update_moment = self._update_moment + features.T @ update
            self._update_target += (update * target).sum().item()
            self._update_squares += update.square().sum().item()

    def solve(self, rank: int | None = None) -> "Solution":
        """Return the best fit whose maps have at most rank `rank`."""
        assert isinstance(self._gram, Tensor)
        assert isinstance(self._moment, Tensor)
        # The ridge is proportional to each feature, so the fit does not depend on the scale of states and updates.
        system = self._gram + RIDGE * self._gram.diagonal().diag()
        multiple = 0.0
        if isinstance(self._update_moment, Tensor):
            # The maps cover the part of the update that the features predict; the multiple is that of the rest.
            told = torch.linalg.solve(system, self._update_moment)
            rest = self._update_squares - (told * self._update_moment).sum().item()
            explained = self._update_target - (told * self._moment).sum().item()
            # The ridge is relative to the rest too: relative to the whole update it would dominate a small rest. If the
            # features predict the update up to rounding, the rest counts as 0.
            multiple = explained / ((1 + RIDGE) * rest) if rest > 1e-9 * self._update_squares else 0.0
        maps: Tensor = torch.linalg.solve(system, self._moment - multiple * self._update_moment)
        return Solution(maps if rank is None else self._projected(maps, rank), multiple)

    def _projected(self, solution: Tensor, rank: int) -> Tensor:
        """Return the solution with maps of at most the given rank; the row of the constant is not part of the rank."""
        if rank >= solution.shape[1]:
            return solution
        assert isinstance(self._gram, Tensor)
        # Reduced-rank regression: the fit is projected onto the directions in which it varies most about its mean.
        centre = self._gram[:-1, -1:] / self._gram[-1, -1]
        covariance = self._gram[:-1, :-1] - centre @ centre.T * self._gram[-1, -1]
        maps = solution[:-1]
        directions = torch.linalg.eigh(maps.T @ covariance @ maps).eigenvectors[:, -rank:]
        projected = maps @ directions @ directions.T
        # The constant compensates for the change of the mean by the removed directions.
        constant = solution[-1] + (centre.T @ (maps - projected)).squeeze(0)
        return torch.cat([projected, constant[None]])

    def fit(self, solution: "Solution") -> LayerFit:
        """Return the quality of `solution` on the rows."""
        assert isinstance(self._gram, Tensor)
        maps, multiple = solution.maps, solution.multiple
        moment = self._moment - multiple * self._update_moment
        removed: Tensor = (2 * maps * moment - maps * (self._gram @ maps)).sum()
        removed = removed + multiple * (2 * self._update_target - multiple * self._update_squares)
        left = max(self._target_squares - removed.item(), 0.0)
        explained = 1 - left / self._target_squares if self._target_squares else 1.0
        sizes = torch.cat(self._sizes)
        return LayerFit(explained, left / self._elements, (sizes.max() / sizes.median()).item())


@dataclass(frozen=True)
class Solution:
    """The solution of a regression.

    Attributes:
        maps: float64[n, width]; the last row is that of the constant.
        multiple: the factor of the update.

    """

    maps: Tensor
    multiple: float = 0.0


def _set(predictor: UpdatePredictor, solution: Tensor) -> None:
    """Set the maps of `predictor` to `solution`, float64[features * width + 1, width]."""
    width = solution.shape[1]
    stacked = solution[:-1].T
    output = None
    if predictor.output is not None:
        # Both factors get the roots of the singular values, so that they have similar sizes for training.
        left, values, right = torch.linalg.svd(stacked, full_matrices=False)
        rank = predictor.output.weight.shape[1]
        root = values[:rank].sqrt()
        output, stacked = left[:, :rank] * root, root[:, None] * right[:rank]
    predictor.set(stacked.split(width, dim=1), solution[-1], output)
