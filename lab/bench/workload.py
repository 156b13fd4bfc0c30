"""What is measured: a network with a batch, and the arms that train it in different ways."""

import contextlib
import copy
import dataclasses
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import revformers
from revformers.activations.budget.budget import Budget, Recompute
from revformers.activations.budget.budgeted import smallest_budget
from revformers.head.loss import Head, apply_head

Precision = Literal["float32", "bfloat16", "bfloat16_autocast"]
Optimizer = Literal["none", "adamw"]

Model = TypeVar("Model", bound=PreTrainedModel)

PLAIN_STORE = "plain_store"
PLAIN_CHECKPOINT = "plain_checkpoint"
PLAIN_OFFLOAD = "plain_offload"
PLAIN_ARMS = (PLAIN_STORE, PLAIN_CHECKPOINT, PLAIN_OFFLOAD)
BUDGETS: dict[str, Recompute] = {"budget": "rebuild", "budget_checkpoint": "checkpoint"}
ARM_NAMES = (*PLAIN_ARMS, "store", "checkpoint", "offload", "rebuild", *BUDGETS)


@dataclass(frozen=True)
class Workload:
    """A causal language model with random weights, and the batch of random tokens that it is trained on.

    Attributes:
        model_config: a Hugging Face model configuration, as its `to_dict` gives it.
        batch_size: sequences in a step.
        sequence_length: tokens in a sequence.
        precision: ``"float32"``; ``"bfloat16"`` holds the weights in bfloat16; ``"bfloat16_autocast"`` holds them in
            float32 and computes under autocast.
        device: where it runs, e.g. ``"cpu"`` or ``"cuda"``.
        seed: of weights and tokens.
        head: how every arm computes its loss.
        optimizer: ``"none"`` ends a step with the backward pass; ``"adamw"`` has the states of PyTorch's fused AdamW
            and runs it at a learning rate of 0, so that it takes its time and all steps see the same weights.

    """

    model_config: dict[str, Any]
    batch_size: int
    sequence_length: int
    precision: Precision = "float32"
    device: str = "cpu"
    seed: int = 0
    head: Head = "auto"
    optimizer: Optimizer = "none"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"There is no precision {self.precision!r}; choose one of {', '.join(get_args(Precision))}."
            )
        if self.head not in get_args(Head):
            raise ValueError(f"There is no head {self.head!r}; choose one of {', '.join(get_args(Head))}.")
        for name in ("batch_size", "sequence_length", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"A workload needs a {name} of at least 1, not {getattr(self, name)}.")
        _check_device(self.device)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration as transformers reads it, with one name for width and depth in every family."""
        return AutoConfig.for_model(**self.model_config)

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Width of the stream."""
        return int(self.config.hidden_size)

    @property
    def longest_sequence(self) -> int | None:
        """The most tokens that the model reads, where its configuration says so."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def layer_input_elements(self) -> int:
        """Number of elements in the tensor that one block reads: batch x sequence x width."""
        return self.batch_size * self.sequence_length * self.width

    @property
    def layer_input_bytes(self) -> int:
        """Size of the tensor that one block reads, in bytes."""
        return self.layer_input_elements * (2 if self.precision == "bfloat16" else 4)

    @property
    def network(self) -> tuple[Any, ...]:
        """What makes the model and its optimizer; workloads that agree in it differ in their batches alone."""
        return (self.model_config, self.precision, self.device, self.seed, self.head, self.optimizer)

    def with_layers(self, layers: int) -> "Workload":
        """Return the same workload with another number of blocks."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        values = config.to_dict()
        # Some families list a type per layer, which must be as long as the stack; left out, they make it themselves.
        values.pop("layer_types", None)
        return dataclasses.replace(self, model_config=values)

    def build_model(self) -> PreTrainedModel:
        """Return the model in training mode; the same seed gives the same weights."""
        config = copy.deepcopy(self.config)
        config.use_cache = False
        torch.manual_seed(self.seed)
        # On the device at once: the host may be too small for the model, and slow to draw its weights.
        with torch.device(self.device):
            dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        apply_head(model, self.head)
        return model.train()

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer | None:
        """Return the optimizer of a step, if there is one."""
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
        """Run one forward and backward pass, and the optimizer where there is one; return the loss."""
        loss = self.forward_backward(model, batch)
        if optimizer is not None:
            optimizer.step()
        return loss


@dataclass(frozen=True)
class Arm:
    """One way to train the network of a workload.

    Attributes:
        name: ``"store"``, ``"checkpoint"``, ``"offload"`` or ``"rebuild"`` for the network with `dynamics` and that
            policy for its activations; ``"plain_store"``, ``"plain_checkpoint"`` and ``"plain_offload"`` for the
            ordinary network as transformers trains it: storing, with its own non-reentrant checkpointing, and with
            the checkpoints in host memory; ``"budget"`` and ``"budget_checkpoint"`` for what fits into `budget` stored
            and the rest rebuilt, or checkpointed.
        dynamics: what `Dynamics.to_dict` gives; plain arms leave it out.
        budget: bytes that a forward pass may keep, as `revformers.Budget` has it; only the two arms above take it.

    """

    name: str
    dynamics: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ARM_NAMES:
            raise ValueError(f"There is no arm {self.name!r}; choose among {', '.join(ARM_NAMES)}.")
        if not self.plain and not self.dynamics:
            raise ValueError(f"The arm {self.name!r} needs a dynamics.")
        if (self.name in BUDGETS) != (self.budget is not None):
            needs = "needs a budget in bytes" if self.name in BUDGETS else "takes no budget"
            raise ValueError(f"The arm {self.name!r} {needs}.")

    @property
    def plain(self) -> bool:
        """Whether this arm leaves the network as transformers made it."""
        return self.name in PLAIN_ARMS

    @property
    def activations(self) -> str | Budget:
        """The activation policy of an arm that is not plain."""
        return self.name if self.budget is None else Budget(self.budget, BUDGETS[self.name])

    def smallest_budget(self, workload: Workload) -> int:
        """Return the bytes that a budget arm keeps at least of a workload."""
        steps = revformers.dynamics.from_dict(self.dynamics).steps(workload.layers)
        item_size = workload.layer_input_bytes // workload.layer_input_elements
        return smallest_budget(workload.layer_input_elements, item_size, steps, may_rebuild=self.name == "budget")

    def apply(self, model: Model) -> Model:
        """Change `model`, which may have trained as another arm, in place to train as this one, and return it.

        Raises:
            NotReversibleError: for dynamics that the model cannot have.
            ValueError: where this arm needs a later transformers.

        """
        # The names that every transformers 5 has; later ones call them deprecated.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            revformers.make_residual(model).gradient_checkpointing_disable()
            if self.name == PLAIN_CHECKPOINT:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not self.plain:
            recurrence = revformers.dynamics.from_dict(self.dynamics)
            return revformers.make_reversible(model, recurrence, activations=self.activations)
        if self.name == PLAIN_OFFLOAD:
            enable = getattr(model, "activation_checkpointing_enable", None)
            if enable is None or "offload" not in inspect.signature(enable).parameters:
                raise ValueError(
                    f"The arm {PLAIN_OFFLOAD!r} needs a transformers whose activation_checkpointing_enable offloads, "
                    f"such as 5.24."
                )
            enable({"use_reentrant": False}, offload=True)
        return model


def arms_from_names(
    names: Sequence[str], dynamics: "revformers.dynamics.Dynamics", budget: int | None = None
) -> list[Arm]:
    """Return the arms called `names`, those that need a dynamics with `dynamics`, those that need one with `budget`."""
    return [
        Arm(name) if name in PLAIN_ARMS else Arm(name, dynamics.to_dict(), budget if name in BUDGETS else None)
        for name in names
    ]


def llama_config(
    layers: int, width: int, vocabulary: int, sequence_length: int, heads: int | None = None
) -> dict[str, Any]:
    """Return the configuration of a small Llama: MLP of 8/3 times the width, heads of 64 channels where they fit.

    Raises:
        ValueError: where the width cannot be shared among the heads.

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


def _check_device(device: str) -> None:
    """Raise ValueError where PyTorch cannot use `device`; a GPU is not touched, as its context would take memory."""
    try:
        parsed = torch.device(device)
        if parsed.type != "cuda":
            torch.empty(0, device=parsed)
            return
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"PyTorch cannot use the device {device!r} here: {error}") from error
    if (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"PyTorch cannot use the device {device!r} here: it finds {torch.cuda.device_count()} GPUs.")
