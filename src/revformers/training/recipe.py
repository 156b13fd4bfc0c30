"""What a recipe for pretraining says, field by field."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from revformers.activations import parse_policy
from revformers.data.section import DataSection
from revformers.errors import UserError, require
from revformers.training.recipe_file import read_recipe


@dataclass(frozen=True)
class NetworkSection:
    """A network with fresh weights."""

    architecture: str = "llama"
    """Model type in transformers, such as llama, gpt2 or qwen3."""

    config: dict[str, Any] = field(default_factory=dict)
    """Fields of that model's transformers configuration; what is left out keeps the default of the architecture, and
    vocab_size that of the tokenizer where there is one."""

    seed: int = 0
    """Seed of the initial weights."""


@dataclass(frozen=True)
class ModelSection(NetworkSection):
    """The network, with fresh weights."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. For mixed precision leave float32 and set training.precision."""


@dataclass(frozen=True)
class RecurrenceSection:
    """The recurrence that takes the place of the residual update."""

    name: str = "hamiltonian"
    """Recurrence: residual (the ordinary network), midpoint, blended_midpoint, leapfrog or hamiltonian."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of that recurrence, such as step_size, granularity, start and readout."""


@dataclass(frozen=True)
class DynamicsSection(RecurrenceSection):
    """The recurrence that takes the place of the residual update, and what its backward pass keeps."""

    activations: str = "rebuild"
    """What the backward pass does for activations: store keeps all, checkpoint recomputes from each layer's kept input,
    offload keeps those inputs in host memory, rebuild keeps nothing and reverses the recurrence. A budget such as
    budget:20GiB stores what fits and rebuilds the rest, budget:20GiB:checkpoint checkpoints it."""

    def __post_init__(self) -> None:
        require_activations("dynamics.activations", self.activations)


@dataclass(frozen=True)
class HeadSection:
    """How the cross-entropy is computed from the last hidden states; the same loss to rounding."""

    head: Literal["auto", "chunked", "own"] = "auto"
    """chunked takes the logits of a few tokens at a time, own those of all tokens at once, as the model does it itself;
    auto is chunked, or own with a warning for a model that cannot be chunked."""

    chunk: int | None = None
    """Tokens whose logits exist at once; left out, a quarter of the width, from 64 to 1024."""

    def __post_init__(self) -> None:
        require(self.chunk is None or self.chunk >= 1, "loss.chunk", "at least 1", self.chunk)
        require(self.chunk is None or self.head != "own", "loss.chunk", "left out with loss.head own", self.chunk)


@dataclass(frozen=True)
class TrainerSection:
    """Fields of transformers.TrainingArguments, with the names, types and meaning that they have there.

    Those whose default is another one here, or that the library reads, are listed: so --help shows them, and a mistake
    is reported before the Trainer is imported, which takes seconds.
    """

    max_steps: int = 1000  # Optimizer steps.
    per_device_train_batch_size: int = 8  # Sequences that a device takes at once.
    gradient_accumulation_steps: int = 1  # Batches whose gradients are added up in one optimizer step.
    per_device_eval_batch_size: int = 8  # Sequences that a device takes at once for the validation loss.
    learning_rate: float = 1e-3  # Peak learning rate.
    lr_scheduler_type: str = "cosine"  # Course of the learning rate after the warm-up, a scheduler of transformers.
    warmup_steps: float = 0.0  # Steps over which the learning rate rises from 0; below 1, a share of max_steps.
    weight_decay: float = 0.1  # Weight decay of AdamW, which leaves out biases and norms.
    adam_beta1: float = 0.9  # Decay of AdamW's mean gradient.
    adam_beta2: float = 0.95  # Decay of AdamW's mean squared gradient.
    max_grad_norm: float = 1.0  # Norm to which the gradient is clipped; 0 leaves it alone.
    logging_steps: int = 10  # Steps between two entries of the loss curve.
    eval_steps: int = 100  # Steps between two measurements of the validation loss.
    save_steps: int = 500  # Steps between two checkpoints.
    save_total_limit: int = 2  # Checkpoints to keep.
    dataloader_num_workers: int = 0  # Processes that load data beside the one that trains.
    seed: int = 0  # Seed of the data order and of dropout.

    def __post_init__(self) -> None:
        for item in dataclasses.fields(TrainerSection):
            value = getattr(self, item.name)
            least = int(item.type is int and item.name not in ("dataloader_num_workers", "seed"))
            require(item.type is str or value >= least, f"training.{item.name}", f"at least {least}", value)


@dataclass(frozen=True)
class TrainingSection(TrainerSection):
    """How it is trained. The names are those of transformers.TrainingArguments where it has the field."""

    optimizer_in_backward: bool = False
    """Whether each parameter is stepped, and its gradient freed, as soon as its gradient is complete; the same steps to
    the bit. It needs max_grad_norm 0, no gradient accumulation, no float16, and one process."""

    mlp_tile: int | None = None
    """Tokens on which an MLP is evaluated at once, against the memory of its inner activations; costs one more
    evaluation of every MLP. Left out, all tokens."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type: bfloat16 and float16 run matrix products in it and keep float32 weights."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Any further field of transformers.TrainingArguments, by its name there, such as report_to or use_cpu."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mlp_tile is None or self.mlp_tile >= 1, "training.mlp_tile", "at least 1", self.mlp_tile)


@dataclass(frozen=True)
class SampleSection:
    """The text that the trained model writes at the end."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; none writes no sample."""

    max_new_tokens: int = 128
    """Tokens to write after each prompt."""

    temperature: float = 0.8
    """Sampling temperature; 0 always takes the likeliest token."""

    top_k: int = 50
    """Number of likeliest tokens to sample from."""

    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "sample.max_new_tokens", "at least 1", self.max_new_tokens)
        require(self.temperature >= 0, "sample.temperature", "at least 0", self.temperature)
        require(self.top_k >= 1, "sample.top_k", "at least 1", self.top_k)


@dataclass(frozen=True)
class Recipe:
    """Everything that one pretraining run is made of."""

    output: str = ""
    """Run directory, for checkpoints, the final model, the loss curve and the sample; left out, runs/NAME with the
    name of the recipe file."""

    model: ModelSection = field(default_factory=ModelSection)
    dynamics: DynamicsSection = field(default_factory=DynamicsSection)
    data: DataSection = field(default_factory=DataSection)
    loss: HeadSection = field(default_factory=HeadSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    sample: SampleSection = field(default_factory=SampleSection)

    identity: ClassVar[tuple[str, ...]] = ("model", "dynamics", "data")
    """The sections that decide which weights a checkpoint holds, and which text they saw."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values, as YAML would hold it."""
        values = dataclasses.asdict(self)
        values["sample"]["prompts"] = list(self.sample.prompts)
        return values


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Recipe:
    """Return the pretraining recipe in the YAML file at `path`; see `revformers.training.recipe_file.read_recipe`."""
    return read_recipe(Recipe(), path, overrides)


def require_activations(name: str, value: str) -> None:
    """Raise UserError where the value of the field `name` is no way to hold activations."""
    try:
        parse_policy(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
