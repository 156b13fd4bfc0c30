"""An independent implementation of the recurrence in float64, which shares only the coefficients with this library.

Forward hooks on the layers of an ordinary model of transformers return p[l+1] = a p[l-1] + b p[l] + c f_l(p[l]) instead
of the layer's output. There are no fixed-point numbers, no tape and no fields: f_l is the layer's output minus its
input.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from revformers.dynamics.base import Dynamics
from revformers.models.update_predictor import UpdatePredictor


class Recurrence:
    """Hooks that make an ordinary model follow a recurrence with one step per block.

    Args:
        dynamics: the recurrence.
        predictors: the term added to each f_l, a function of p[l], f_l(p[l]) and f_{l-1}(p[l]); None for no term.

    """

    def __init__(self, dynamics: Dynamics, predictors: Sequence[UpdatePredictor] | None = None) -> None:
        self._dynamics = dynamics
        self._predictors = predictors
        self._states: list[Tensor] = []
        self._before: Any = None
        self._index = 0

    @contextlib.contextmanager
    def on(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Make the layers follow the recurrence inside the block, restarting in every forward pass."""
        hooks = [
            layer.register_forward_hook(self._step(index, len(layers)), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _step(self, index: int, number: int) -> Any:
        def step(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            hidden = arguments[0] if arguments else keywords["hidden_states"]
            if index == 0:
                self._states = [hidden if self._dynamics.start == "repeat" else hidden * 0, hidden]
            previous, current = self._states
            update = _first(output) - current
            weight = self._dynamics.previous_update(index)
            second = self._second(current) if index and (weight or self._wants_second(index)) else update * 0
            update = update + weight * second
            if self._predictors is not None:
                update = update + _prediction(self._predictors[index], current, update, second)
            a = self._dynamics.coefficients(index)
            successor = float(a.previous) * previous + float(a.current) * current + a.update * update
            self._states = [current, successor]
            self._before = layer, arguments[1:], {k: v for k, v in keywords.items() if k != "hidden_states"}
            if index == number - 1 and self._dynamics.readout == "mean":
                successor = (current + successor) / 2
            return (successor, *output[1:]) if isinstance(output, tuple) else successor

        return step

    def _wants_second(self, index: int) -> bool:
        return self._predictors is not None and "previous_update" in self._predictors[index].form.features

    def _second(self, current: Tensor) -> Tensor:
        layer, arguments, keywords = self._before
        return _first(type(layer).forward(layer, current, *arguments, **keywords)) - current


def _prediction(predictor: UpdatePredictor, state: Tensor, update: Tensor, second: Tensor) -> Tensor:
    known = {"state": state, "update": update, "previous_update": second}
    total: Tensor = predictor.bias
    for feature, linear in zip(predictor.form.features, predictor.maps, strict=True):
        total = total + linear(known[feature])
    return total * predictor.scale


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
