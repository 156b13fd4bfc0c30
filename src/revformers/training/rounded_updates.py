"""A warning of weights that an optimizer hardly moves, because rounding takes most updates back.

A weight in bfloat16 has 8 binary digits. An update below half a unit in its last place rounds to the weight itself.
AdamW and Lion move a weight by about the learning rate in a step, so it can be told before the training which weights
such updates leave as they are. Some updates are larger: AdamW's reach (1 - beta1) / sqrt(1 - beta2) learning rates,
about 3.2 by default, where a gradient is zero in most steps, as in the row of a rare token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerState

STEPS_BY_THE_LEARNING_RATE = ("adam", "lion")
"""Parts of the names of optimizers whose updates are about as large as the learning rate."""

TOLERATED = 0.1
"""The share of weights that may hardly move without a warning."""


@dataclass(frozen=True)
class LostUpdates:
    """What rounding takes back of an optimizer's updates.

    Attributes:
        share: the share of the weights, in [0, 1], that an update of the peak learning rate leaves as they are.
        rate: the largest peak learning rate of such weights; 0 without any.
        optimizer: the name of the optimizer's class.

    """

    share: float
    rate: float
    optimizer: str


def lost_updates(optimizer: Optimizer) -> LostUpdates:
    """Return what rounding takes back of an optimizer's updates.

    Args:
        optimizer: the optimizer; a wrapper of accelerate is removed. After a schedule was made for it, the peak is the
            schedule's. For optimizers whose updates have another size, or that round stochastically, the share is 0.
            Of weights that are spread over processes, those of this process are counted.

    """
    inner = getattr(optimizer, "optimizer", optimizer)
    name = type(inner).__name__
    lost = weights = 0
    rates = [0.0]
    for group in inner.param_groups if _steps_by_the_learning_rate(inner) else []:
        rate = _peak_rate(group)
        for parameter in group["params"]:
            local = parameter.detach()
            local = local.to_local() if hasattr(local, "to_local") else local
            weights += local.numel()
            if rate > 0 and local.is_floating_point() and local.dtype.itemsize < 4 and (stay := _stay(local, rate)):
                lost += stay
                rates.append(rate)
    return LostUpdates(lost / max(weights, 1), max(rates), name)


def _steps_by_the_learning_rate(optimizer: Optimizer) -> bool:
    name = type(optimizer).__name__.lower()
    stochastic = getattr(optimizer, "bf16_stochastic_round", False)
    return any(part in name for part in STEPS_BY_THE_LEARNING_RATE) and not stochastic


def _peak_rate(group: dict[str, Any]) -> float:
    """Return the largest learning rate of a group of parameters under its schedule."""
    return float(group.get("initial_lr", group["lr"]))


def _stay(weights: Tensor, rate: float) -> int:
    """Return how many weights have half a unit in the last place that is larger than `rate`."""
    exponent = math.floor(math.log2(2 * rate / torch.finfo(weights.dtype).eps)) + 1
    return int((weights.abs() >= 2.0**exponent).sum())


def rounded_updates(optimizer: Optimizer, remedy: str) -> str | None:
    """Return a sentence on weights that hardly move, which ends in the `remedy`; None if they are few."""
    lost = lost_updates(optimizer)
    if lost.share <= TOLERATED:
        return None
    return (
        f"{lost.share:.0%} of the trained weights will hardly move: they are in a type of 16 bits, and an update of "
        f"{lost.optimizer}, about the learning rate ({lost.rate:g}), is below half a unit in their last place, so it "
        f"rounds to nothing; {remedy}."
    )


class WarnOfRoundedUpdates(TrainerCallback):
    """Says at the start of a command's training how many weights will hardly move.

    Args:
        say: shows a line to the user.

    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Say it, in one process."""
        remedy = "set model.dtype to float32 and training.precision to bfloat16, or raise training.learning_rate"
        if state.is_world_process_zero and (warning := rounded_updates(kwargs["optimizer"], remedy)):
            self._say(f"Warning: {warning}")
