"""A warning of weights that an optimizer does not move, because rounding takes every update back.

A weight in bfloat16 has 8 binary digits. An update below half a unit in its last place rounds to the weight itself, in
this step and in every later one. AdamW and Lion move a weight by about the learning rate in a step, so it can be told
before the training which weights stay.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerState

STEPS_BY_THE_LEARNING_RATE = ("adam", "lion")
"""Parts of the names of optimizers whose updates are about as large as the learning rate."""

TOLERATED = 0.1
"""The share of weights that may stay without a warning."""


def lost_share(optimizer: Optimizer) -> float:
    """Return the share of an optimizer's weights that an update of the peak learning rate rounds away, in [0, 1].

    Args:
        optimizer: the optimizer; a wrapper of accelerate is removed. After a schedule was made for it, the peak is the
            schedule's. For optimizers whose updates have another size, or that round stochastically, the result is 0.
            Of weights that are spread over processes, those of this process are counted.

    """
    inner = getattr(optimizer, "optimizer", optimizer)
    name = type(inner).__name__.lower()
    if not any(part in name for part in STEPS_BY_THE_LEARNING_RATE) or getattr(inner, "bf16_stochastic_round", False):
        return 0.0
    lost = weights = 0
    for group in inner.param_groups:
        rate = _peak_rate(group)
        for parameter in group["params"]:
            local = parameter.detach()
            local = local.to_local() if hasattr(local, "to_local") else local
            weights += local.numel()
            if rate > 0 and local.is_floating_point() and local.dtype.itemsize < 4:
                lost += _stay(local, rate)
    return lost / max(weights, 1)


def _peak_rate(group: dict[str, Any]) -> float:
    """Return the largest learning rate of a group of parameters under its schedule."""
    return float(group.get("initial_lr", group["lr"]))


def _stay(weights: Tensor, rate: float) -> int:
    """Return how many weights have half a unit in the last place that is larger than `rate`."""
    exponent = math.floor(math.log2(2 * rate / torch.finfo(weights.dtype).eps)) + 1
    return int((weights.abs() >= 2.0**exponent).sum())


def rounded_updates(optimizer: Optimizer, remedy: str) -> str | None:
    """Return a sentence on weights that stay, which ends in the `remedy`; None if they are few."""
    share = lost_share(optimizer)
    if share <= TOLERATED:
        return None
    inner = getattr(optimizer, "optimizer", optimizer)
    rate = max(map(_peak_rate, inner.param_groups))
    return (
        f"{share:.0%} of the trained weights will not move: they are in a type of 16 bits, and an update of "
        f"{type(inner).__name__}, about the learning rate ({rate:g}), is below half a unit in their last place, so it "
        f"rounds to nothing in every step; {remedy}."
    )


class WarnOfRoundedUpdates(TrainerCallback):
    """Says at the start of a command's training how many weights will stay.

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
