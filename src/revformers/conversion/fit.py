"""Update predictors, fitted layer by layer in closed form."""

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
    """How well one layer's predictor does, on text that it was not fitted to where there is such text.

    Attributes:
        explained: share of the squared distance from the state that the step aims at that the predictor and the fitted
            step size remove: 1 is all of it, and below 0 they add to it.
        error: squared distance that is left, relative to the square of the ordinary network's state, mean over tokens.
        largest_token: root mean square of the largest of these states, relative to the median token's.

    """

    explained: float
    error: float
    largest_token: float


@dataclass(frozen=True)
class LastUpdate:
    """What p[l] tells of the last update of the ordinary network: u = p[l] K + k, for one token a row.

    Attributes:
        map: K, float64[width, width].
        constant: k, float64[width].

    """

    map: Tensor
    constant: Tensor

    def ahead_by(self, share: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (q, before) -> p with p - share (p - before - u(p)) = q, all float64[tokens, width].

        p is ahead of q by a share, from 0 to below 1, of what u leaves of its last update (`dynamics.compensation`).
        q is the state of the ordinary network, `before` the converted network's state that p follows.
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
    """Fit what each state of the ordinary network tells of its last update, by weighted ridge regression.

    Args:
        model: a reversible model that the predictors belong to.
        predictors: one per layer, of the form ``("state",)``, which take the fits too.
        batches: as for `fit_update_predictors`.
        progress: called with each layer's number when it is fitted; not for those that `stage` has.
        stage: what is done already, and takes what is done.

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
    """Fit every layer's predictor along the converted network's trajectory, so that a later one mends early errors.

    The step aims at a state that is ahead of the ordinary network's by a share of what its last update holds beyond
    what the state tells of it: the share that the next blend takes away. Ridge regression on the features of the
    predictor's form and a constant, in closed form, sums in float64. Where the form does not read the update, the step
    size is fitted as well: being ahead by a share of an update that the state does not tell takes a larger step, up to
    that of `dynamics.compensation.compensating_step_sizes` where it tells nothing of it.

    Every token counts by its error relative to its state: a trained network holds a few tokens whose states are a
    thousand times larger than the others', which would decide the fit alone. Every layer is evaluated twice per token,
    on the original's states and on the converted ones.

    Args:
        model: the reversible model that the predictors belong to.
        predictors: one per layer, overwritten.
        coefficients: a, b and c of every layer.
        shares: for p[0], ..., p[L] how far ahead they are to be; see `dynamics.compensation.leads`.
        last_updates: for every layer what p[l] tells of the last update.
        batches: what the model takes, e.g. ``{"input_ids": int64[batch, tokens]}``; without padding.
        set_aside: more of it, which the fits are judged on; left out, they are judged on the text of the fit.
        progress: called with each layer's number when it is fitted; not for those that `stage` has.
        stage: what is done already, and takes what is done.

    Returns:
        How well each layer's step does, and its step size.

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
        text: what the states are those of.
        fit: takes the states in front of a layer and its number; gives the layer its predictor, moves the states past
            it and returns what it found: the predictor's maps as "solution", and whatever else.
        progress: as for `fit_update_predictors`.
        stage: as for `fit_update_predictors`.

    Returns:
        What was found for each layer, in this run or in one before it.

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
    """Return features float64[rows, width] side by side, with a column of ones behind them."""
    return torch.cat([*features, torch.ones(len(features[0]), 1, dtype=torch.float64)], dim=1)


class NormalEquations:
    """The sums of a ridge regression, in float64: constant memory in the number of rows.

    Every row is divided by the root mean square of the state that it belongs to.
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
            update: float64[rows, width], of which a multiple is fitted beside the features; None fits none.

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
        """Return the best fit whose maps have at most the given rank."""
        assert isinstance(self._gram, Tensor)
        assert isinstance(self._moment, Tensor)
        # In proportion to each feature, so that the fit does not depend on the scale of states and updates.
        system = self._gram + RIDGE * self._gram.diagonal().diag()
        multiple = 0.0
        if isinstance(self._update_moment, Tensor):
            # The features tell a part of the update, which their maps can have; the multiple is that of the rest.
            told = torch.linalg.solve(system, self._update_moment)
            rest = self._update_squares - (told * self._update_moment).sum().item()
            explained = self._update_target - (told * self._moment).sum().item()
            # The ridge is relative to the rest too: relative to the whole update it would rule a small rest. An update
            # that the features tell to rounding has no rest to speak of.
            multiple = explained / ((1 + RIDGE) * rest) if rest > 1e-9 * self._update_squares else 0.0
        maps: Tensor = torch.linalg.solve(system, self._moment - multiple * self._update_moment)
        return Solution(maps if rank is None else self._projected(maps, rank), multiple)

    def _projected(self, solution: Tensor, rank: int) -> Tensor:
        """Return the solution of at most the given rank apart from the constant's row."""
        if rank >= solution.shape[1]:
            return solution
        assert isinstance(self._gram, Tensor)
        # Reduced-rank regression: the fit is projected on the directions in which it varies most about its mean.
        centre = self._gram[:-1, -1:] / self._gram[-1, -1]
        covariance = self._gram[:-1, :-1] - centre @ centre.T * self._gram[-1, -1]
        maps = solution[:-1]
        directions = torch.linalg.eigh(maps.T @ covariance @ maps).eigenvectors[:, -rank:]
        projected = maps @ directions @ directions.T
        # The constant makes up for what the directions left out take from the mean.
        constant = solution[-1] + (centre.T @ (maps - projected)).squeeze(0)
        return torch.cat([projected, constant[None]])

    def fit(self, solution: "Solution") -> LayerFit:
        """Return how well `solution` fits the rows."""
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
    """What a regression found.

    Attributes:
        maps: float64[n, width]; the last row is that of the constant.
        multiple: of the update, beside the maps.

    """

    maps: Tensor
    multiple: float = 0.0


def _set(predictor: UpdatePredictor, solution: Tensor) -> None:
    """Give `predictor` the maps in `solution`, float64[features * width + 1, width]."""
    width = solution.shape[1]
    stacked = solution[:-1].T
    output = None
    if predictor.output is not None:
        # Both factors share the singular values, which keeps them alike in size for training.
        left, values, right = torch.linalg.svd(stacked, full_matrices=False)
        rank = predictor.output.weight.shape[1]
        root = values[:rank].sqrt()
        output, stacked = left[:, :rank] * root, root[:, None] * right[:rank]
    predictor.set(stacked.split(width, dim=1), solution[-1], output)
