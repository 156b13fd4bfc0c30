"""Sums of token losses over the logits of one chunk; the caller adds the chunks and divides by the number of tokens."""

import torch
from torch import Tensor
from torch.nn import functional

MASKED = -100
"""The label of a token that no loss covers, in transformers."""


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over tokens of -log softmax(logits)[target], nats.

    Args:
        logits: (tokens, vocabulary), any floating dtype; computed in at least float32.
        targets: int64[tokens], without masked tokens.

    """
    return functional.cross_entropy(_wide(logits), targets, reduction="sum")


def divergence_sum(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the sum over tokens of T^2 KL(softmax(teacher_logits / T) || softmax(logits / T)), nats.

    The factor T^2 keeps the scale of the gradient independent of the temperature (Hinton, Vinyals, Dean,
    arXiv 1503.02531).

    Args:
        logits: of the student, (tokens, vocabulary), any floating dtype; computed in at least float32.
        teacher_logits: of the same shape, without gradients.
        temperature: T, above 0.

    """
    student = functional.log_softmax(_wide(logits) / temperature, dim=-1)
    teacher = functional.log_softmax(_wide(teacher_logits) / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
