"""The closed-form fit of the update predictor, layer by layer along the converted model's own trajectory."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revformers.dynamics.base import Coefficients
from revformers.hf.forward import visit_layer
from revformers.update_predictor import UpdatePredictor

RIDGE = 1e-3
"""Ridge of the regression, relative to the mean square of each feature."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerFit:
    """How well one layer's predictor fits the calibration text.

    Attributes:
        explained: share of the squared error of the next state that the predictor removes, from 0 to 1.
        error: mean square error of the next state that is left, relative to the mean square of the state.

    """

    explained: float
    error: float


class CalibrationStates:
    """The states of all calibration tokens at one layer, in a file: memory does not grow with the number of tokens.

    Attributes:
        original: p of the ordinary network, float32[tokens, width] a batch.
        previous: p[l-1] of the converted network, the same.
        current: p[l] of the converted network, the same.
        update: f(p[l]) of the converted network, the same.

    """

    def __init__(self, folder: Path, embeddings: Sequence[Tensor]) -> None:
        self.original = [_mapped(folder / f"original-{index}", value) for index, value in enumerate(embeddings)]
        self.previous = [_mapped(folder / f"previous-{index}", value) for index, value in enumerate(embeddings)]
        self.current = [_mapped(folder / f"current-{index}", value) for index, value in enumerate(embeddings)]
        self.update = [_mapped(folder / f"update-{index}", value) for index, value in enumerate(embeddings)]


@torch.no_grad()
def fit_update_predictors(
    model: nn.Module,
    predictors: Sequence[UpdatePredictor],
    coefficients: Sequence[Coefficients],
    batches: Sequence[Batch],
    progress: Callable[[int], None] = lambda layer: None,
) -> list[LayerFit]:
    """Fit every layer's predictor so that the converted step lands on the ordinary network's next state.

    Layer after layer, each on the states that the converted layers before it produce, so that an error made early is
    corrected later. Ridge regression on the features [p[l], f(p[l]), 1], sums in float64. Every layer is evaluated
    twice per token: on the original's trajectory and on the converted one.

    Args:
        model: the reversible model; its layers' fields are evaluated as they are, without predictors.
        predictors: one per layer, overwritten.
        coefficients: a, b and c of every layer, c = 1.
        batches: what the model takes, e.g. ``{"input_ids": int64[batch, tokens]}``; without padding.
        progress: called with each layer's number when it is fitted.

    """
    with tempfile.TemporaryDirectory(prefix="revformers-") as folder:
        states = CalibrationStates(Path(folder), [_embedding(model, batch) for batch in batches])
        fits = []
        for layer, predictor in enumerate(predictors):
            sums = NormalEquations()
            for index, batch in enumerate(batches):
                sums.add(*_evaluate(model, layer, batch, states, index, coefficients[layer]))
            solution = sums.solve()
            predictor.set(solution)
            fits.append(sums.fit(solution))
            for index in range(len(batches)):
                _step(predictor, states, index, coefficients[layer])
            progress(layer)
        return fits


class NormalEquations:
    """The sums of a ridge regression, in float64: constant memory in the number of rows."""

    def __init__(self) -> None:
        self._gram: Tensor | float = 0.0
        self._moment: Tensor | float = 0.0
        self._target_squares = 0.0
        self._state_squares = 0.0

    def add(self, features: Tensor, target: Tensor, state: Tensor) -> None:
        """Add rows: features float64[rows, n], targets float64[rows, width], and the states that they correct."""
        self._gram = self._gram + features.T @ features
        self._moment = self._moment + features.T @ target
        self._target_squares += target.square().sum().item()
        self._state_squares += state.square().sum().item()

    def solve(self) -> Tensor:
        """Return the solution, float64[n, width]."""
        assert isinstance(self._gram, Tensor)
        assert isinstance(self._moment, Tensor)
        # In proportion to each feature, so that the fit does not depend on the scale of states and updates.
        ridge = RIDGE * self._gram.diagonal().diag()
        return torch.linalg.solve(self._gram + ridge, self._moment)

    def fit(self, solution: Tensor) -> LayerFit:
        """Return how well `solution` fits the rows."""
        assert isinstance(self._gram, Tensor)
        removed: Tensor = (2 * solution * self._moment - solution * (self._gram @ solution)).sum()
        left = max(self._target_squares - removed.item(), 0.0)
        # The first layer has nothing to correct: p[-1] = p[0], so its step is the ordinary one.
        explained = 1 - left / self._target_squares if self._target_squares else 1.0
        return LayerFit(explained, left / self._state_squares)


def _evaluate(
    model: nn.Module, layer: int, batch: Batch, states: CalibrationStates, index: int, coefficients: Coefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate f at both trajectories, move the original's on, and return features, target and the original state."""
    shape = batch["input_ids"].shape

    def evaluate(field: Callable[[Tensor], Tensor], embedding: Tensor) -> None:
        for state, result in ((states.original[index], None), (states.current[index], states.update[index])):
            value = field(state.view(*shape, -1).to(embedding)).to("cpu", torch.float32).flatten(0, -2)
            if result is None:
                state.add_(value)
            else:
                result.copy_(value)

    visit_layer(model, batch, layer, evaluate)
    current, update = states.current[index].double(), states.update[index].double()
    features = torch.cat([current, update, torch.ones(len(current), 1, dtype=torch.float64)], dim=1)
    original = states.original[index].double()
    return features, original - _blended(states, index, coefficients).double(), original


def _step(predictor: UpdatePredictor, states: CalibrationStates, index: int, coefficients: Coefficients) -> None:
    """Move the converted trajectory of one batch on, with the predictor as it will run."""
    device = predictor.update.weight.device
    correction = predictor(states.current[index].to(device), states.update[index].to(device))
    successor = _blended(states, index, coefficients) + correction.to("cpu", torch.float32)
    states.previous[index].copy_(states.current[index])
    states.current[index].copy_(successor)


def _blended(states: CalibrationStates, index: int, coefficients: Coefficients) -> Tensor:
    """Return a p[l-1] + b p[l] + c f, float32[tokens, width]."""
    a, b, c = float(coefficients.previous), float(coefficients.current), coefficients.update
    return a * states.previous[index] + b * states.current[index] + c * states.update[index]


def _embedding(model: nn.Module, batch: Batch) -> Tensor:
    """Return p[0] of a batch, float32[tokens, width]."""
    found: list[Tensor] = []
    visit_layer(model, batch, 0, lambda field, embedding: found.append(embedding))
    return found[0].to("cpu", torch.float32).flatten(0, -2)


def _mapped(path: Path, values: Tensor) -> Tensor:
    """Return a tensor in the file `path`, with the content of `values`."""
    mapped: Any = torch.from_file(str(path), shared=True, size=values.numel(), dtype=torch.float32)
    mapped = mapped.view(values.shape)
    mapped.copy_(values)
    return mapped
