"""Ways to checkpoint the ordinary network that PyTorch and transformers have, and this library does not plan."""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from revformers.private_api import ATTENTION_KERNELS
from revformers.setup import STORE, Setup, checkpoint_layers

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Rival(Setup):
    """Checkpointing of the ordinary network that keeps more than layer inputs; its activations are `Checkpoint`.

    Attributes:
        every: only every n-th layer is checkpointed, and the others store their activations (transformers'
            `every_n_layers`).
        keeps_attention: whether checkpointed layers keep the outputs of fused attention kernels (PyTorch's selective
            checkpointing).

    """

    every: int = 1
    keeps_attention: bool = False

    def apply(self, model: Model) -> Model:
        """Change `model` in place so that it is trained in this way, whatever setup it had, and return it.

        Raises:
            ValueError: if checkpointing every n-th layer needs a later transformers.

        """
        STORE.apply(model)
        how = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if self.keeps_attention else {}
        checkpoint_layers(model, how, **({"every_n_layers": self.every} if self.every > 1 else {}))
        return model


def _policy(context: Any, kernel: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    """Keep the results of attention kernels, the same ones as a budget."""
    return CheckpointPolicy.MUST_SAVE if kernel.name() in ATTENTION_KERNELS else CheckpointPolicy.PREFER_RECOMPUTE
