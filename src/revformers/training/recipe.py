"""The fields of a pretraining recipe."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from revformers.activations import parse_policy
from revformers.data.section import DataSection
from revformers.engine.state_format import parse_states
from revformers.errors import UserError, require
from revformers.training.recipe_file import read_recipe


@dataclass(frozen=True)
class NetworkSection:
    """A network with fresh weights.

    Attributes:
        architecture: Model type in transformers, such as llama, gpt2 or qwen3.
        config: Fields of that model's transformers configuration. The others keep the architecture's defaults, but
            vocab_size is that of the tokenizer if there is one.
        seed: Seed of the initial weights.

    """

    architecture: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed("model.seed", self.seed)


@dataclass(frozen=True)
class ModelSection(NetworkSection):
    """The network, with fresh weights.

    Attributes:
        dtype: Type of the weights. For mixed precision keep float32 and set training.precision.

    """

    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class RecurrenceSection:
    """The recurrence that replaces the residual update.

    Attributes:
        name: Recurrence, such as midpoint or hamiltonian; residual is the ordinary network.
        options: Options of that recurrence, such as step_size, granularity, start and readout.

    """

    name: str = "hamiltonian"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DynamicsSection(RecurrenceSection):
    """The recurrence that replaces the residual update, and its activation policy.

    Attributes:
        activations: Where the backward pass gets its activations: store keeps them all, checkpoint recomputes them from
            each layer's stored input, offload stores those inputs in host memory, rebuild stores none and reverses the
            recurrence. A budget such as budget:20GiB stores what fits and rebuilds the rest; budget:20GiB:checkpoint
            checkpoints the rest.
        states: Format of the states: int32, int64, or auto, which is int32 for layers in bfloat16 or float16 and under
            autocast. 32-bit states hold magnitudes up to 32,512 with 16 binary digits after the point, and more with
            fewer, as in auto:14.

    """

    activations: str = "rebuild"
    states: str = "auto"

    def __post_init__(self) -> None:
        require_activations("dynamics.activations", self.activations)
        require_states("dynamics.states", self.states)


@dataclass(frozen=True)
class HeadSection:
    """The computation of the cross-entropy from the last hidden states; all give the same loss up to rounding.

    Attributes:
        head: chunked computes the logits of a few tokens at a time, own those of all tokens at once, as the model
            itself does; auto is chunked, or own with a warning if the model does not support chunks.
        chunk: Tokens whose logits exist at once; by default a quarter of the width, between 64 and 1024.

    """

    head: Literal["auto", "chunked", "own"] = "auto"
    chunk: int | None = None

    def __post_init__(self) -> None:
        require(self.chunk is None or self.chunk >= 1, "loss.chunk", "at least 1", self.chunk)
        require(self.chunk is None or self.head != "own", "loss.chunk", "left out with loss.head own", self.chunk)


@dataclass(frozen=True)
class TrainerSection:
    """Fields of transformers.TrainingArguments, with their names, types and meanings there.

    These are the fields that runs set most often; `arguments` takes all others. --help shows them, and mistakes in them
    are reported before the Trainer is imported, which takes seconds.
    """

    max_steps: int = 1000  # Optimizer steps.
    per_device_train_batch_size: int = 8  # Sequences per device and batch.
    gradient_accumulation_steps: int = 1  # Batches whose gradients are added up in one optimizer step.
    per_device_eval_batch_size: int = 8  # Sequences per device and batch for the validation loss.
    learning_rate: float = 1e-3  # Peak learning rate.
    lr_scheduler_type: str = "cosine"  # Learning rate schedule after the warm-up, by its name in transformers.
    warmup_steps: float = 0.0  # Steps over which the learning rate rises from 0; below 1, a fraction of max_steps.
    weight_decay: float = 0.1  # Weight decay of AdamW, except on biases and norms.
    adam_beta1: float = 0.9  # Decay of AdamW's mean gradient.
    adam_beta2: float = 0.95  # Decay of AdamW's mean squared gradient.
    max_grad_norm: float = 1.0  # Norm to which the gradient is clipped; 0 disables clipping.
    logging_steps: int = 10  # Steps between two entries of the loss curve.
    eval_steps: int = 100  # Steps between two measurements of the validation loss.
    save_steps: int = 500  # Steps between two checkpoints.
    save_total_limit: int = 2  # Checkpoints to keep.
    dataloader_num_workers: int = 0  # Processes that load data, besides the one that trains.
    seed: int = 0  # Seed of the data order and of dropout.

    def __post_init__(self) -> None:
        for item in dataclasses.fields(TrainerSection):
            value = getattr(self, item.name)
            least = int(item.type is int and item.name not in ("dataloader_num_workers", "seed"))
            require(item.type is str or value >= least, f"training.{item.name}", f"at least {least}", value)
        require_seed("training.seed", self.seed)


@dataclass(frozen=True)
class TrainingSection(TrainerSection):
    """The training. Fields that transformers.TrainingArguments has as well have the same names there.

    Attributes:
        optimizer_in_backward: Update each parameter, and free its gradient, as soon as its gradient is complete; the
            updates are the same to the bit. It needs max_grad_norm 0, no gradient accumulation, no float16, and one
            process.
        mlp_tile: Tokens on which an MLP is evaluated at once, to reduce the memory of its inner activations; costs one
            more evaluation of every MLP. By default all tokens.
        precision: Autocast type: with bfloat16 and float16, matrix products run in that type and weights stay float32.
        arguments: Further fields of transformers.TrainingArguments, under their names there, such as report_to or
            use_cpu.

    """

    optimizer_in_backward: bool = False
    mlp_tile: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mlp_tile is None or self.mlp_tile >= 1, "training.mlp_tile", "at least 1", self.mlp_tile)


@dataclass(frozen=True)
class SampleSection:
    """The text that the trained model generates at the end.

    Attributes:
        prompts: Prompts to continue; without prompts no sample is written.
        max_new_tokens: Tokens to generate after each prompt.
        temperature: Sampling temperature; 0 always picks the most likely token.
        top_k: Number of most likely tokens to sample from.
        seed: Seed of the sampling.

    """

    prompts: tuple[str, ...] = ()
    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "sample.max_new_tokens", "at least 1", self.max_new_tokens)
        require(self.temperature >= 0, "sample.temperature", "at least 0", self.temperature)
        require(self.top_k >= 1, "sample.top_k", "at least 1", self.top_k)
        require_seed("sample.seed", self.seed)


@dataclass(frozen=True)
class Recipe:
    """All settings of a pretraining run.

    Attributes:
        output: Run directory for checkpoints, the final model, the loss curve and the sample; by default runs/NAME,
            after the name of the recipe file.
        identity: The sections that determine the weights in a checkpoint and the text they were trained on.

    """

    output: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    dynamics: DynamicsSection = field(default_factory=DynamicsSection)
    data: DataSection = field(default_factory=DataSection)
    loss: HeadSection = field(default_factory=HeadSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    sample: SampleSection = field(default_factory=SampleSection)

    identity: ClassVar[tuple[str, ...]] = ("model", "dynamics", "data")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values, as in YAML."""
        values = dataclasses.asdict(self)
        values["sample"]["prompts"] = list(self.sample.prompts)
        return values


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Recipe:
    """Return the pretraining recipe in the YAML file at `path`; see `revformers.training.recipe_file.read_recipe`."""
    return read_recipe(Recipe(), path, overrides)


def require_activations(name: str, value: str) -> None:
    """Raise UserError if the value of the field `name` is not an activation policy."""
    try:
        parse_policy(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def require_states(name: str, value: str) -> None:
    """Raise UserError if the value of the field `name` is not a format of states."""
    try:
        parse_states(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def require_seed(name: str, value: int) -> None:
    """Raise UserError if the value of the field `name` is no seed that Python, NumPy and PyTorch take."""
    require(0 <= value < 2**32, name, "0 to 4294967295", value)
