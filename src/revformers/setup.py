"""Describes how a network is trained and on which batches, for plans and measurements."""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self, TypeVar, get_args

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from revformers.activations import ActivationPolicy, Checkpoint, Offload, Store
from revformers.dynamics.base import Dynamics
from revformers.engine.state_format import StateFormat
from revformers.head.loss import Head
from revformers.models.attach import add_update_predictors
from revformers.models.fields import require_blocks
from revformers.models.tiles import set_mlp_tiles
from revformers.models.update_predictor import PredictorForm
from revformers.reversible import make_residual, make_reversible

Precision = Literal["float32", "bfloat16", "bfloat16_autocast"]
Optimizer = Literal["none", "adamw", "adamw8bit", "adafactor", "lion", "sgd"]
Training = Literal["full", "lora", "qlora"]

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Setup:
    """A way to train a network.

    Attributes:
        dynamics: the dynamics of the reversible network; None for the ordinary network of transformers.
        activations: the policy; for the ordinary network `Store`, or transformers' own `Checkpoint` or `Offload`.
        states: the format of the reversible network's states.
        predictors: the form of the update predictors of the reversible network; None without them.
        mlp_tile: tokens of the batch that an MLP evaluates at a time; None for all at once.

    Raises:
        ValueError: for any other policy or predictors of the ordinary network, predictors of dynamics that step by
            branch, or a policy that needs an inverse that the dynamics lack.

    """

    dynamics: Dynamics | None
    activations: ActivationPolicy
    states: StateFormat = field(default_factory=StateFormat)
    predictors: PredictorForm | None = None
    mlp_tile: int | None = None

    def __post_init__(self) -> None:
        if self.dynamics is not None:
            self.activations.check(self.dynamics)
            if self.predictors is not None:
                require_blocks(self.dynamics)
        elif not isinstance(self.activations, Store | Checkpoint | Offload):
            raise ValueError(f"The ordinary network has no activation policy {self.activations}; give dynamics.")
        elif self.predictors is not None:
            raise ValueError("The ordinary network has no update predictors; give dynamics.")

    @property
    def ordinary(self) -> bool:
        """Whether the network is the ordinary one of transformers."""
        return self.dynamics is None

    @property
    def steps_per_layer(self) -> int:
        """Number of steps that a layer takes: 2 if the reversible network steps by branch."""
        return 1 if self.dynamics is None else self.dynamics.steps_per_layer

    def apply(self, model: Model) -> Model:
        """Change `model` in place so that it is trained in this way, whatever setup it had, and return it.

        Raises:
            NotReversibleError: if the model cannot have the dynamics or the update predictors.
            ValueError: if offloading needs a later transformers, or the MLPs cannot be evaluated in tiles.

        """
        # Every transformers 5 has this name; later versions deprecate it.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            set_mlp_tiles(make_residual(model), self.mlp_tile)
            model.gradient_checkpointing_disable()
        if self.dynamics is not None:
            make_reversible(model, self.dynamics, activations=self.activations, states=self.states)
            if self.predictors is not None:
                add_update_predictors(model, self.predictors)
            return model
        if isinstance(self.activations, Checkpoint):
            checkpoint_layers(model)
        if isinstance(self.activations, Offload):
            checkpoint_layers(model, offload=True)
        return model


def checkpoint_layers(model: PreTrainedModel, how: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Let transformers checkpoint the layers of an ordinary network, without reentrant backward passes.

    Args:
        model: the network, changed in place.
        how: further arguments of `torch.utils.checkpoint.checkpoint`.
        options: `offload` or `every_n_layers` of `activation_checkpointing_enable`.

    Raises:
        ValueError: if the installed transformers does not have these options.

    """
    how = {"use_reentrant": False, **(how or {})}
    if not options:
        # Later versions deprecate this name, as in `Setup.apply`.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        return
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None or not options.keys() <= inspect.signature(enable).parameters.keys():
        raise ValueError(
            f"Checkpointing the ordinary network with {' and '.join(options)} needs a transformers whose "
            f"activation_checkpointing_enable has that option, such as 5.24."
        )
    enable(how, **options)


STORE = Setup(None, Store())
CHECKPOINT = Setup(None, Checkpoint())
OFFLOAD = Setup(None, Offload())
ORDINARY_SETUPS = (STORE, CHECKPOINT, OFFLOAD)
"""The ways to train the ordinary network. transformers' own offloading computes and copies in turns."""


@dataclass(frozen=True)
class Workload:
    """A causal language model and the batch that it is trained on.

    Attributes:
        model_config: a configuration of transformers, or the result of its `to_dict`.
        batch_size: sequences in a step.
        sequence_length: tokens in a sequence.
        precision: ``"float32"``; ``"bfloat16"`` holds the weights in bfloat16; ``"bfloat16_autocast"`` holds them in
            float32 and computes under autocast.
        head: how the loss is computed.
        optimizer: ``"none"`` ends a step with the backward pass.
        training: all weights; a LoRA adapter ("lora"); or a LoRA adapter on frozen NF4 weights ("qlora").
        rank: rank of the adapter.
        adapter: the adapter as a configuration of PEFT; None for LoRA of `rank` on all linear layers but the head.

    Raises:
        ValueError: for a value that does not exist or is too small.

    """

    model_config: dict[str, Any] | PreTrainedConfig
    batch_size: int = 1
    sequence_length: int = 2048
    precision: Precision = "float32"
    head: Head = "auto"
    optimizer: Optimizer = "none"
    training: Training = "full"
    rank: int = 16
    adapter: Any = None

    def __post_init__(self) -> None:
        for name, values in (
            ("precision", Precision),
            ("head", Head),
            ("optimizer", Optimizer),
            ("training", Training),
        ):
            if getattr(self, name) not in get_args(values):
                raise ValueError(
                    f"There is no {name} {getattr(self, name)!r}; choose one of {', '.join(get_args(values))}."
                )
        for name in ("batch_size", "sequence_length", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"A workload needs a {name} of at least 1, not {getattr(self, name)}.")

    def __hash__(self) -> int:
        # Only the fields that can be hashed: a configuration cannot.
        return hash((self.batch_size, self.sequence_length, self.precision, self.head, self.optimizer, self.training))

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration object, whose names for width and depth are the same in every family."""
        if isinstance(self.model_config, PreTrainedConfig):
            return self.model_config
        return AutoConfig.for_model(**self.model_config)

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def longest_sequence(self) -> int | None:
        """The most tokens that the model reads, or None if its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def layer_input_elements(self) -> int:
        """Number of elements in the input of one block: batch x sequence x width."""
        return self.batch_size * self.sequence_length * self.width

    @property
    def layer_input_bytes(self) -> int:
        """Size of the input of one block, in bytes."""
        return self.layer_input_elements * self.dtype.itemsize

    def with_layers(self, layers: int) -> Self:
        """Return the same workload with another number of blocks."""
        config = with_depth(self.config, layers)
        as_given = config.to_dict() if isinstance(self.model_config, dict) else config
        return dataclasses.replace(self, model_config=as_given)


def with_depth(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return a copy of a configuration with another number of layers.

    Some families list a type for every layer. A shallower model uses the first of them; for a deeper model the family's
    configuration creates them.
    """
    result = copy.deepcopy(config)
    types = getattr(result, "layer_types", None)
    result.num_hidden_layers = layers
    if types and layers <= len(types):
        result.layer_types = types[:layers]
    elif types:
        values = result.to_dict()
        del values["layer_types"]
        result = type(config).from_dict(values)
    return result
