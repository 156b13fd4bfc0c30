"""The loss on text, by which a conversion is evaluated."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Mapping[str, Tensor]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean cross-entropy of the next token over all batches, in nats per token, summed in float64.

    Sequences are evaluated one by one: with a large vocabulary the logits of several are larger than the model.
    """
    total, tokens = 0.0, 0
    rows = [
        {name: values[[row]] for name, values in batch.items()}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]
    for batch in rows:
        targets = batch["input_ids"][:, 1:].flatten()
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        total += functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum").double().item()
        tokens += targets.numel()
    return total / tokens
