"""Trains several networks for a few optimizer steps, in turns on the same batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from lab.bench.step_time import StepTimes, measure_step_times
from lab.bench.workload import MeasuredWorkload


@dataclass(frozen=True)
class ShortTraining:
    """The result of a short training.

    Attributes:
        losses: for each network, the loss of every step before its update, in nats per token.
        times: seconds of each network's forward and backward pass in every step except the first. The optimizer, which
            is the same for all, is not included.

    """

    losses: dict[str, list[float]]
    times: StepTimes


def train_in_turns(
    workload: MeasuredWorkload,
    models: Mapping[str, PreTrainedModel],
    batches: Sequence[Mapping[str, Tensor]],
    learning_rate: float,
    *,
    weight_decay: float = 0.1,
    largest_gradient_norm: float = 1.0,
    on_step: Callable[[int], object] = lambda step: None,
) -> ShortTraining:
    """Train every network one step per batch with AdamW; the learning rate rises over the first half of the steps.

    Args:
        workload: how the forward and backward pass runs; only its precision and device matter here.
        models: the networks by name; their weights change.
        batches: at least two; each network sees them in this order. `input_ids` and `labels`, int64[batch, tokens].
        learning_rate: the highest learning rate.
        weight_decay: weight decay of AdamW.
        largest_gradient_norm: the norm to which gradients are clipped.
        on_step: called with the number of the step, from 0, after all networks have taken it.

    Raises:
        ValueError: for fewer than two batches, because the first step is a warm-up that is not timed.

    """
    if len(batches) < 2:
        raise ValueError(
            f"A short training needs at least 2 steps, as the first is not timed; it was given {len(batches)}."
        )
    losses: dict[str, list[float]] = {name: [] for name in models}
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95))
        for name, model in models.items()
    }
    on_device = [{key: tensor.to(workload.device) for key, tensor in batch.items()} for batch in batches]

    def step_of(name: str) -> Callable[[int], None]:
        def step(number: int) -> None:
            # Makes dropout draw the same masks in every network.
            torch.manual_seed(number)
            losses[name].append(workload.forward_backward(models[name], on_device[number]))

        return step

    def update(name: str, number: int) -> None:
        clip_grad_norm_(models[name].parameters(), largest_gradient_norm)
        for group in optimizers[name].param_groups:
            group["lr"] = learning_rate * min(1.0, (number + 1) / (len(batches) / 2))
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=False)

    times = measure_step_times(
        {name: step_of(name) for name in models},
        rounds=len(batches) - 1,
        warm_up_rounds=1,
        device=workload.device,
        after_step=update,
        on_round=on_step,
    )
    return ShortTraining(losses, times)


def mean_loss(workload: MeasuredWorkload, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the mean loss over `batches` in evaluation mode, in nats per token."""
    model.eval()
    with torch.no_grad(), workload.autocast():
        losses = [model(**{key: tensor.to(workload.device) for key, tensor in batch.items()}).loss for batch in batches]
    model.train()
    return float(torch.stack(losses).double().mean())
