"""What a conversion is judged by: the loss on text, and the distance to the original's predictions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Mapping[str, Tensor]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean cross-entropy of the next token over all batches, nats a token, summed in float64."""
    total, tokens = 0.0, 0
    for batch in batches:
        targets = batch["input_ids"][:, 1:].flatten()
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        total += functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum").double().item()
        tokens += targets.numel()
    return total / tokens


@torch.no_grad()
def next_token_distributions(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logarithms of the model's distributions of the next token, float32[batch, tokens, vocabulary]."""
    distributions: Tensor = model(**batch).logits.float().log_softmax(-1)
    return distributions


def mean_divergence(model: nn.Module, batches: Sequence[Batch], original: Sequence[Tensor]) -> float:
    """Return the mean KL(original || model) of the distributions of the next token, nats a token, summed in float64.

    Args:
        model: what is judged.
        batches: the text.
        original: what `next_token_distributions` of the original gave for each batch.

    """
    total, tokens = 0.0, 0
    for batch, reference in zip(batches, original, strict=True):
        distributions = next_token_distributions(model, batch)
        divergence = functional.kl_div(distributions, reference, log_target=True, reduction="none").sum(-1)
        total += divergence.double().sum().item()
        tokens += divergence.numel()
    return total / tokens
