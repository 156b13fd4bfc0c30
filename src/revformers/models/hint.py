"""Warnings about dynamics that do not suit the weights of a model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction

from torch import nn

from revformers.dynamics.base import Dynamics
from revformers.errors import ConversionHint
from revformers.models.discovery import unwrap
from revformers.models.parts import update_predictors
from revformers.private_api import was_loaded

NEAR = Fraction(1, 8)
"""Largest |a| considered near the ordinary network. It adds one percent to the loss of a trained five-layer Llama;
1/4 adds four percent, 1/2 seventeen, and the midpoint rule 160."""

_SILENT: ContextVar[bool] = ContextVar("revformers_without_hint", default=False)
_given = False


@contextmanager
def without_hint() -> Iterator[None]:
    """Suppress the warnings, as a block or a decorator, where a model gets the dynamics that it was fitted for."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def warn_of_lost_predictors(model: nn.Module) -> None:
    """Warn if new dynamics remove the update predictors that a conversion fitted to the previous ones."""
    if update_predictors(model) and not _SILENT.get():
        warnings.warn(
            f"The update predictors of {type(unwrap(model)).__name__} were fitted to its previous dynamics and are "
            f"removed with them; call revformers.convert for new ones.",
            stacklevel=3,
        )


def hint_at_conversion(model: nn.Module, dynamics: Dynamics, number_of_layers: int) -> None:
    """Warn once per process if an ordinary `model` has pretrained weights and `dynamics` is far from ordinary."""
    global _given
    if _given or _SILENT.get():
        return
    inner = unwrap(model)
    largest = max((abs(step.previous) for step in dynamics.steps(number_of_layers)), default=Fraction(0))
    if not was_loaded(inner) or largest <= NEAR:
        return
    _given = True
    warnings.warn(
        f"{type(inner).__name__} has pretrained weights ({inner.name_or_path}), and {type(dynamics).__name__} makes "
        f"another network of them, whose loss starts much higher: revformers.convert(model, bits, calibration) makes "
        f"the model reversible with little loss, and a blend within 1/8, such as BlendedMidpoint(1/16), stays near it.",
        ConversionHint,
        stacklevel=3,
    )
