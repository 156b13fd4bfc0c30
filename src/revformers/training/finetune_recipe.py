"""The fields of a fine-tuning recipe."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from revformers.data.section import DataSection, SourceSection
from revformers.errors import require
from revformers.training.recipe import HeadSection, TrainingSection, require_activations
from revformers.training.recipe_file import read_recipe


@dataclass(frozen=True)
class PretrainedSection:
    """The network that is fine-tuned."""

    name: str = ""
    """Directory or hub id of a causal language model, ordinary or saved as reversible; or a GGUF file, whose weights
    are dequantised."""

    revision: str | None = None
    """Commit, branch or tag of a hub model; by default the head of its main branch."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. For mixed precision keep float32 and set training.precision."""

    quantization: Literal["none", "int8", "nf4"] = "none"
    """Type of the frozen weights under an adapter: int8 by torchao, or nf4 (4 bits) by bitsandbytes."""

    tokenizer: str | None = None
    """Directory, hub id or GGUF file of the tokenizer; by default the model's own."""


@dataclass(frozen=True)
class ConversionSection:
    """The conversion that makes the network reversible before training."""

    bits: float | None = 2.0
    """Side information in bits per element and layer, 0 to 8, averaged over the layers, as in revformers.convert. none
    does not convert: an ordinary network stays ordinary, and a saved reversible model keeps its dynamics."""

    predictor: Literal["none", "state", "update", "previous_mlp", "previous_update"] = "state"
    """Input of the update predictors, which are fitted to the training data; none uses no predictors."""

    sequences: int = 64
    """Blocks of training data to which the predictors are fitted."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further options of revformers.convert, under their names there."""

    activations: str = "rebuild"
    """Where the backward pass gets its activations: store keeps them all, checkpoint recomputes them from each layer's
    stored input, offload stores those inputs in host memory, rebuild stores none and reverses the recurrence. A budget
    such as budget:20GiB stores what fits and rebuilds the rest; budget:20GiB:checkpoint checkpoints the rest."""

    def __post_init__(self) -> None:
        require(self.sequences >= 1, "conversion.sequences", "at least 1", self.sequences)
        require_activations("conversion.activations", self.activations)


@dataclass(frozen=True)
class AdapterSection:
    """The trained parameters: all weights, or an adapter on frozen weights."""

    kind: Literal["none", "lora"] = "none"
    """none trains all weights, lora trains a low-rank adapter of PEFT."""

    rank: int = 16
    """Rank of the adapter."""

    alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""

    dropout: float = 0.0
    """Dropout on the adapter's input."""

    target_modules: str = "all-linear"
    """Modules to adapt: all-linear (all linear layers, update predictors included, except the head), or a regular
    expression for module names. Put a list of names into options."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of peft.LoraConfig, under their names there."""

    merge: bool = False
    """Also save the model with the adapter merged into its weights."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", "at least 1", self.rank)
        require(self.alpha > 0, "adapter.alpha", "above 0", self.alpha)
        require(0 <= self.dropout < 1, "adapter.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True)
class FinetuneDataSection(SourceSection):
    """The training data: text, prompts with completions, or conversations."""

    source: str = ""
    """stdlib (source and documentation of the running Python's standard library), a .txt, .jsonl, .json or .parquet
    file, a directory of such files, or the id of a data set on the Hugging Face hub."""

    form: Literal["auto", "text", "prompt_completion", "messages"] = "auto"
    """text is packed into blocks; prompt_completion trains on the completions, messages on what the assistant says.
    auto chooses by the columns: messages, or prompt and completion, otherwise text."""

    columns: dict[str, Any] = field(default_factory=dict)
    """Sources of prompt, completion or messages, if the columns have other names: the name of a column, or a template
    of columns such as "{instruction}\\n{input}\\n"."""

    block_length: int = 256
    """Tokens in a block of text. Prompts with completions and conversations are truncated to this length."""

    def records(self) -> DataSection:
        """Return the fields that pretraining's readers and packing need."""
        return DataSection(**{item.name: getattr(self, item.name) for item in dataclasses.fields(SourceSection)})


@dataclass(frozen=True)
class LossSection(HeadSection):
    """The loss: a weighted sum of cross-entropy and distillation."""

    cross_entropy: float = 1.0
    """Weight of the cross-entropy of the data."""

    distillation: float = 0.0
    """Weight of the divergence KL(ordinary network || converted network)."""

    temperature: float = 1.0
    """Temperature of both distributions in the divergence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cross_entropy", "distillation"):
            require(getattr(self, name) >= 0, f"loss.{name}", "at least 0", getattr(self, name))
        require(self.cross_entropy + self.distillation > 0, "loss.cross_entropy", "above 0 without distillation", 0)
        require(self.temperature > 0, "loss.temperature", "above 0", self.temperature)
        weighted = self.distillation > 0 or self.cross_entropy != 1
        require(not weighted or self.head != "own", "loss.head", "chunked for a weighted loss or distillation", "own")


@dataclass(frozen=True)
class AnnealingSection:
    """The path from the ordinary network to the converted one during training."""

    steps: int = 0
    """Optimizer steps in which the blends move to those of conversion.bits; 0 uses these from the start."""

    start: float = 1 / 256
    """Blend of every layer in the first step. Smaller blends need more side information: 8 bits per element and layer
    at 1/256."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "annealing.steps", "at least 0", self.steps)
        require(1 / 256 <= self.start <= 1, "annealing.start", "in [1/256, 1]", self.start)


@dataclass(frozen=True)
class FinetuneRecipe:
    """All settings of a fine-tuning run."""

    output: str = ""
    """Run directory for checkpoints, the final model or adapter and the loss curve; by default runs/NAME, after the
    name of the recipe file."""

    model: PretrainedSection = field(default_factory=PretrainedSection)
    conversion: ConversionSection = field(default_factory=ConversionSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    data: FinetuneDataSection = field(default_factory=FinetuneDataSection)
    loss: LossSection = field(default_factory=LossSection)
    annealing: AnnealingSection = field(default_factory=AnnealingSection)
    deploy: Literal["reversible", "ordinary"] = "reversible"
    """The network to save at the end: reversible, or ordinary, which is the trained weights in the ordinary network
    that any software can run. ordinary drops the update predictors and does not train them."""

    training: TrainingSection = field(
        default_factory=lambda: TrainingSection(
            learning_rate=2e-5, warmup_steps=0.03, weight_decay=0.0, adam_beta2=0.999, save_steps=200
        )
    )

    identity: ClassVar[tuple[str, ...]] = ("model", "conversion", "adapter", "data", "annealing", "deploy")
    """The sections that determine the weights in a checkpoint and the data they were trained on."""

    def __post_init__(self) -> None:
        steps, longest = self.annealing.steps, self.training.max_steps
        require(steps < longest, "annealing.steps", f"below training.max_steps ({longest})", steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values, as in YAML."""
        return dataclasses.asdict(self)


def load_finetune_recipe(
    path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> FinetuneRecipe:
    """Return the fine-tuning recipe in the YAML file at `path`; see `revformers.training.recipe_file.read_recipe`."""
    return read_recipe(FinetuneRecipe(), path, overrides)
