"""What a recipe for fine-tuning says, field by field."""

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
    """Directory or hub id of a causal language model, an ordinary or a saved reversible one; or a GGUF file, whose
    weights are dequantised."""

    revision: str | None = None
    """Commit, branch or tag of a hub model; left out, its main branch as it is today."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. For mixed precision leave float32 and set training.precision."""

    quantization: Literal["none", "int8", "nf4"] = "none"
    """Type that the frozen weights under an adapter are kept in: int8 by torchao, nf4 (4 bits) by bitsandbytes."""

    tokenizer: str | None = None
    """Directory, hub id or GGUF file of the tokenizer; left out, the model's own."""


@dataclass(frozen=True)
class ConversionSection:
    """How the network is made reversible before it is trained."""

    bits: float | None = 2.0
    """Side information in bits an element a layer, mean over the layers, 0 to 8, as in revformers.convert. none
    converts nothing: an ordinary network stays one, and a saved reversible model keeps its dynamics."""

    predictor: Literal["none", "state", "update", "previous_mlp", "previous_update"] = "state"
    """What the update predictors read, which are fitted to the training data; none fits none."""

    sequences: int = 64
    """Blocks of training data that the predictors are fitted to."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further options of revformers.convert, by their names there."""

    activations: str = "rebuild"
    """What the backward pass does for activations: store keeps all, checkpoint recomputes from each layer's kept input,
    offload keeps those inputs in host memory, rebuild keeps nothing and reverses the recurrence. A budget such as
    budget:20GiB stores what fits and rebuilds the rest, budget:20GiB:checkpoint checkpoints it."""

    def __post_init__(self) -> None:
        require(self.sequences >= 1, "conversion.sequences", "at least 1", self.sequences)
        require_activations("conversion.activations", self.activations)


@dataclass(frozen=True)
class AdapterSection:
    """What is trained: all weights, or an adapter on frozen ones."""

    kind: Literal["none", "lora"] = "none"
    """none trains all weights, lora a low-rank adapter of PEFT."""

    rank: int = 16
    """Rank of the adapter."""

    alpha: float = 32.0
    """The adapter's update is scaled by alpha / rank."""

    dropout: float = 0.0
    """Dropout on the adapter's input."""

    target_modules: str = "all-linear"
    """The modules that are adapted: all-linear (all but the head; update predictors too), or a regular expression of
    their names. A list of names goes into options."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of peft.LoraConfig, by their names there."""

    merge: bool = False
    """Whether to save, beside the adapter, the model with the adapter added to its weights."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", "at least 1", self.rank)
        require(self.alpha > 0, "adapter.alpha", "above 0", self.alpha)
        require(0 <= self.dropout < 1, "adapter.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True)
class FinetuneDataSection(SourceSection):
    """The text, the prompts with their completions, or the conversations to train on."""

    source: str = ""
    """stdlib (source and documentation of the running Python's standard library), a .txt, .jsonl, .json or .parquet
    file, a directory of such files, or the id of a data set on the Hugging Face hub."""

    form: Literal["auto", "text", "prompt_completion", "messages"] = "auto"
    """text is packed into blocks; prompt_completion trains on completions, and messages on what the assistant says.
    auto decides by the columns: messages, or prompt and completion, otherwise text."""

    columns: dict[str, Any] = field(default_factory=dict)
    """Where prompt, completion or messages are found, if not in the columns of these names: the name of a column, or a
    template of columns such as "{instruction}\\n{input}\\n"."""

    block_length: int = 256
    """Tokens in a block of text. Prompts with completions and conversations are cut off after so many."""

    def records(self) -> DataSection:
        """Return what the readers and the packing of pretraining need."""
        return DataSection(**{item.name: getattr(self, item.name) for item in dataclasses.fields(SourceSection)})


@dataclass(frozen=True)
class LossSection(HeadSection):
    """What is minimised: the weighted sum of two losses."""

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
    """The way from the ordinary network to the converted one while training."""

    steps: int = 0
    """Optimizer steps in which the blends move to what conversion.bits asks for; 0 begins there."""

    start: float = 1 / 256
    """Blend of every layer in the first step. Small blends keep side information while they last, 8 bits an element a
    layer at 1/256."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "annealing.steps", "at least 0", self.steps)
        require(1 / 256 <= self.start <= 1, "annealing.start", "in [1/256, 1]", self.start)


@dataclass(frozen=True)
class FinetuneRecipe:
    """Everything that one fine-tuning run is made of."""

    output: str = ""
    """Run directory, for checkpoints, the final model or adapter and the loss curve; left out, runs/NAME with the name
    of the recipe file."""

    model: PretrainedSection = field(default_factory=PretrainedSection)
    conversion: ConversionSection = field(default_factory=ConversionSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    data: FinetuneDataSection = field(default_factory=FinetuneDataSection)
    loss: LossSection = field(default_factory=LossSection)
    annealing: AnnealingSection = field(default_factory=AnnealingSection)
    deploy: Literal["reversible", "ordinary"] = "reversible"
    """What is saved at the end: the reversible model, or ordinary, the trained weights as the ordinary network that
    any software can run, without update predictors, which are not trained then."""

    training: TrainingSection = field(
        default_factory=lambda: TrainingSection(
            learning_rate=2e-5, warmup_steps=0.03, weight_decay=0.0, adam_beta2=0.999, save_steps=200
        )
    )

    identity: ClassVar[tuple[str, ...]] = ("model", "conversion", "adapter", "data", "annealing", "deploy")
    """What decides which weights a checkpoint holds, and which data they saw."""

    def __post_init__(self) -> None:
        steps, longest = self.annealing.steps, self.training.max_steps
        require(steps < longest, "annealing.steps", f"below training.max_steps ({longest})", steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values, as YAML would hold it."""
        return dataclasses.asdict(self)


def load_finetune_recipe(
    path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> FinetuneRecipe:
    """Return the fine-tuning recipe in the YAML file at `path`; see `revformers.training.recipe_file.read_recipe`."""
    return read_recipe(FinetuneRecipe(), path, overrides)
