"""The measured workload: a network with random weights on batches of random tokens."""

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from revformers.head.loss import apply_head
from revformers.setup import Workload


@dataclass(frozen=True)
class MeasuredWorkload(Workload):
    """A causal language model with random weights, all of which are trained, and its batch of random tokens.

    ``"adamw"`` is PyTorch's fused AdamW at a learning rate of 0: it has its states and takes its time, and all steps
    have the same weights.

    Attributes:
        device: where it runs, e.g. ``"cpu"`` or ``"cuda"``.
        seed: seed of weights and tokens.

    """

    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("none", "adamw") or self.training != "full":
            raise ValueError(
                f"Training {self.training} with {self.optimizer} is not measured; train all weights, with no optimizer "
                f"or with adamw."
            )
        check_device(self.device)

    __hash__ = Workload.__hash__

    @property
    def network(self) -> tuple[Any, ...]:
        """The properties that determine the model and its optimizer; equal workloads differ only in their batches."""
        return (self.model_config, self.precision, self.device, self.seed, self.head, self.optimizer)

    def build_model(self) -> PreTrainedModel:
        """Return the model in training mode; the same seed gives the same weights."""
        config = copy.deepcopy(self.config)
        config.use_cache = False
        torch.manual_seed(self.seed)
        # Built on the device: the host may have too little memory for the model, and draws its weights slowly.
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        apply_head(model, self.head)
        return model.train()

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer | None:
        """Return the optimizer of a step, or None."""
        if self.optimizer == "none":
            return None
        return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def build_batch(self, number: int = 0) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, int64 of shape (batch, sequence); `number` chooses among random batches."""
        generator = torch.Generator().manual_seed(self.seed + 1 + number)
        shape = (self.batch_size, self.sequence_length)
        tokens = torch.randint(int(self.config.vocab_size), shape, generator=generator).to(self.device)
        return {"input_ids": tokens, "labels": tokens}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        if self.precision == "bfloat16_autocast":
            return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def forward_backward(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
        """Run one forward and backward pass, adding to the gradients, and return the loss in nats per token."""
        with self.autocast():
            loss = model(**batch).loss
        loss.backward()
        return float(loss.detach())

    def train_step(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer | None, batch: dict[str, torch.Tensor]
    ) -> float:
        """Run one forward and backward pass, and the optimizer if there is one; return the loss."""
        loss = self.forward_backward(model, batch)
        if optimizer is not None:
            optimizer.step()
        return loss


def llama_config(
    layers: int, width: int, vocabulary: int, sequence_length: int, heads: int | None = None
) -> dict[str, Any]:
    """Return the configuration of a small Llama: MLP of 8/3 times the width, heads of 64 channels if they fit.

    Raises:
        ValueError: if the width cannot be divided among the heads.

    """
    heads = heads or max(1, width // 64)
    if width % (2 * heads):
        raise ValueError(f"A width of {width} cannot be shared among {heads} heads of an even number of channels.")
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": -(-width * 8 // 3 // 16) * 16,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": sequence_length,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def check_device(device: str) -> None:
    """Raise ValueError if PyTorch cannot use `device`; a GPU is not touched, because its context would need memory."""
    try:
        parsed = torch.device(device)
        if parsed.type != "cuda":
            torch.empty(0, device=parsed)
            return
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"PyTorch cannot use the device {device!r} here: {error}") from error
    if (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"PyTorch cannot use the device {device!r} here: it finds {torch.cuda.device_count()} GPUs.")
