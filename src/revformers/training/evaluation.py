"""The validation loss of a run: a mean over tokens, for every batch size and number of processes.

The Trainer's own is a mean over batches, in which a batch of few tokens counts as much as one of many. With several
processes it also counts the sequences that fill up their last batches.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer

from revformers.head.losses import MASKED


class TokenMeanEvaluation(Trainer if TYPE_CHECKING else object):  # type: ignore[misc]
    """A base class before a Trainer, for models whose loss is the mean over their unmasked labels, shifted by one."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of the Trainer; in an evaluation the mean over the tokens of this batch and process."""
        number = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=number)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        """Evaluate a batch as the Trainer does, without repeated sequences, and note its loss and its tokens."""
        labels = self._labels(inputs)
        loss, *others = super().prediction_step(model, {**inputs, "labels": labels}, *arguments, **keywords)
        self._losses.append(loss)
        self._tokens.append((labels[..., 1:] != MASKED).sum())
        return loss, *others

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Evaluate as the Trainer does, and put the mean over tokens in the place of its loss."""
        self._losses: list[Tensor] = []
        self._tokens: list[Tensor] = []
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **keywords)
        gathered = self.accelerator.gather((torch.stack(self._losses), torch.stack(self._tokens)))
        losses, tokens = (one.cpu().double() for one in gathered)  # exact counts; not every device has this type
        total = torch.where(tokens > 0, losses * tokens, 0).sum()  # transformers' own loss of no tokens is NaN
        output.metrics[f"{metric_key_prefix}_loss"] = (total / tokens.sum()).item()
        return output

    def _labels(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the labels of a batch, all masked in sequences that an earlier batch or process evaluates."""
        state, labels = self.accelerator.gradient_state, inputs["labels"]
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        own = state.remainder - self.accelerator.process_index * len(labels)
        position = torch.arange(len(labels), device=labels.device)
        return labels.masked_fill(position[:, None] >= own, MASKED)


class TextTrainer(TokenMeanEvaluation, Trainer):
    """The Trainer of text in blocks."""
