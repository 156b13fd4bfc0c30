"""The fields of a fine-tuning recipe."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from revformers.data.section import DataSection, SourceSection
from revformers.errors import require
from revformers.training.recipe import HeadSection, TrainingSection, require_activations, require_states
from revformers.training.recipe_file import TEXTS, read_recipe


@dataclass(frozen=True)
class PretrainedSection:
    """The network that is fine-tuned.

    Attributes:
        name: Directory or hub id of a causal language model, ordinary or saved as reversible; or a GGUF file, whose
            weights are dequantised.
        revision: Commit, branch or tag of a hub model; by default the head of its main branch.
        dtype: Type of the weights. For mixed precision keep float32 and set training.precision.
        quantization: Type of the frozen weights under an adapter: int8 by torchao, or nf4 (4 bits) by bitsandbytes.
        tokenizer: Directory, hub id or GGUF file of the tokenizer; by default the model's own.

    """

    name: str = ""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["none", "int8", "nf4"] = "none"
    tokenizer: str | None = None


@dataclass(frozen=True)
class ConversionSection:
    """The conversion that makes the network reversible before training.

    Attributes:
        bits: Side information in bits per element and layer, 0 to 8, averaged over the layers, as in
            revformers.convert. none does not convert: an ordinary network stays ordinary, and a saved reversible model
            keeps its dynamics.
        predictor: Input of the update predictors, which are fitted to the training data; none uses no predictors.
        sequences: Blocks of training data to which the predictors are fitted.
        options: Further options of revformers.convert, under their names there.
        activations: Where the backward pass gets its activations: store keeps them all, checkpoint recomputes them from
            each layer's stored input, offload stores those inputs in host memory, rebuild stores none and reverses the
            recurrence. A budget such as budget:20GiB stores what fits and rebuilds the rest; budget:20GiB:checkpoint
            checkpoints the rest.
        states: Format of the states: int32, int64, or auto, which is int32 for layers in bfloat16 or float16 and under
            autocast. auto:14 gives 32-bit states 14 binary digits after the point, or fewer where the conversion chose
            fewer for the range of the states, or the model was saved with fewer. By default auto for a conversion,
            and the saved format for a model that is reversible already.

    """

    bits: float | None = 2.0
    predictor: Literal["none", "state", "update", "previous_mlp", "previous_update"] = "state"
    sequences: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    activations: str = "rebuild"
    states: str | None = None

    def __post_init__(self) -> None:
        require(self.sequences >= 1, "conversion.sequences", "at least 1", self.sequences)
        require_activations("conversion.activations", self.activations)
        if self.states is not None:
            require_states("conversion.states", self.states)


@dataclass(frozen=True)
class AdapterSection:
    """The trained parameters: all weights, or an adapter on frozen weights.

    Attributes:
        kind: none trains all weights, lora trains a low-rank adapter of PEFT.
        rank: Rank of the adapter.
        alpha: The adapter's update is scaled by alpha / rank.
        dropout: Dropout on the adapter's input.
        target_modules: Modules to adapt: all-linear (all linear layers, update predictors included, except the head),
            or a regular expression for module names. Put a list of names into options.
        options: Further fields of peft.LoraConfig, under their names there.
        merge: Also save the model with the adapter merged into its weights.

    """

    kind: Literal["none", "lora"] = "none"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str = "all-linear"
    options: dict[str, Any] = field(default_factory=dict)
    merge: bool = False

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", "at least 1", self.rank)
        require(self.alpha > 0, "adapter.alpha", "above 0", self.alpha)
        require(0 <= self.dropout < 1, "adapter.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True)
class FinetuneDataSection(SourceSection):
    r"""The training data: text, prompts with completions, or conversations.

    Attributes:
        source: stdlib (source and documentation of the running Python's standard library), a file whose suffix is .txt,
            .jsonl, .json or .parquet, a directory of such files, or the id of a data set on the Hugging Face hub.
        form: text is packed into blocks; prompt_completion trains on the completions, messages on what the assistant
            says. auto chooses by the columns: messages, or prompt and completion, otherwise text.
        columns: Sources of prompt, completion or messages, if the columns have other names: the name of a column, or a
            template of columns such as "{instruction}\n{input}\n".
        block_length: Tokens in a block of text. Prompts with completions and conversations are truncated to this
            length.

    """

    source: str = ""
    form: Literal["auto", "text", "prompt_completion", "messages"] = "auto"
    columns: dict[str, Any] = field(default_factory=dict, metadata=TEXTS)
    block_length: int = 256

    def source_section(self) -> DataSection:
        """Return the fields that pretraining's readers and packing need."""
        return DataSection(**{item.name: getattr(self, item.name) for item in dataclasses.fields(SourceSection)})


@dataclass(frozen=True)
class LossSection(HeadSection):
    """The loss: a weighted sum of cross-entropy and distillation.

    Attributes:
        cross_entropy: Weight of the cross-entropy of the data.
        distillation: Weight of the divergence KL(ordinary network || converted network).
        temperature: Temperature of both distributions in the divergence.

    """

    cross_entropy: float = 1.0
    distillation: float = 0.0
    temperature: float = 1.0

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
    """The path from the ordinary network to the converted one during training.

    Attributes:
        steps: Optimizer steps in which the blends move to those of conversion.bits; 0 uses these from the start.
        start: Blend of every layer in the first step. Smaller blends need more side information: 8 bits per element and
            layer at 1/256.

    """

    steps: int = 0
    start: float = 1 / 256

    def __post_init__(self) -> None:
        require(self.steps >= 0, "annealing.steps", "at least 0", self.steps)
        require(1 / 256 <= self.start <= 1, "annealing.start", "in [1/256, 1]", self.start)


@dataclass(frozen=True)
class FinetuneRecipe:
    """All settings of a fine-tuning run.

    Attributes:
        output: Run directory for checkpoints, the final model or adapter and the loss curve; by default runs/NAME,
            after the name of the recipe file.
        deploy: The network to save at the end: reversible, or ordinary, which is the trained weights in the ordinary
            network that any software can run. ordinary drops the update predictors and does not train them.
        identity: The sections that determine the weights in a checkpoint and the data they were trained on.

    """

    output: str = ""
    model: PretrainedSection = field(default_factory=PretrainedSection)
    conversion: ConversionSection = field(default_factory=ConversionSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    data: FinetuneDataSection = field(default_factory=FinetuneDataSection)
    loss: LossSection = field(default_factory=LossSection)
    annealing: AnnealingSection = field(default_factory=AnnealingSection)
    deploy: Literal["reversible", "ordinary"] = "reversible"
    training: TrainingSection = field(
        default_factory=lambda: TrainingSection(
            learning_rate=2e-5, warmup_steps=0.03, weight_decay=0.0, adam_beta2=0.999, save_steps=200
        )
    )

    identity: ClassVar[tuple[str, ...]] = ("model", "conversion", "adapter", "data", "annealing", "deploy")

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
