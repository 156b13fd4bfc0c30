"""The fields of a study's recipe."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lab.bench.arm_names import ORDINARY, ORDINARY_CHECKPOINT, ORDINARY_OFFLOAD, ArmName
from lab.bench.workload import MeasuredWorkload
from revformers.byte_size import parse_size
from revformers.dynamics import Dynamics
from revformers.errors import UserError, as_user_error, require
from revformers.head.loss import Head
from revformers.setup import Precision
from revformers.training.model import build_dynamics, network_config
from revformers.training.recipe import NetworkSection, RecurrenceSection

FREE = "free"


@dataclass(frozen=True)
class BenchRecipe:
    """A network with random weights, batches of random tokens, and the ways to train it that are compared.

    Attributes:
        arms: What to compare. The ordinary network as transformers trains it: plain_store, plain_checkpoint,
            plain_offload (checkpoints in host memory), plain_selective (checkpoints that keep the outputs of attention
            kernels), plain_every:2 (every second layer is checkpointed). The network with the dynamics: store,
            checkpoint, offload, rebuild; rebuild:2 rebuilds a blended midpoint rule with 2 bits of side information,
            and rebuild:2:int64 does so with 64-bit states. budget:20GiB stores what it can within 20 GiB and rebuilds
            the rest, budget_checkpoint:20GiB recomputes it; without a size, their peak is that of plain_checkpoint.
        precision: float32; bfloat16 weights; or float32 weights under autocast, bfloat16_autocast.
        head: The loss of every arm: chunked, from the logits of a few tokens at a time; own, as the model computes it;
            auto, chunked if the model supports it.
        optimizer: none ends a step with the backward pass; adamw has the states of AdamW, and its time, in every arm.
        device: Device to measure on, such as cuda.
        batch_size: Sequences in a step.
        sequence_length: Tokens in a sequence.
        depths: Numbers of layers that bench depth measures.
        batch_sizes: Batch sizes that bench batch measures.
        sequence_lengths: Sequence lengths that bench length measures.
        budgets: Budgets that bench budget gives to arms without a size: sizes such as 2GiB, or the largest one whose
            measured peak does not exceed that of an arm of the ordinary network, such as checkpoint for
            plain_checkpoint.
        memory: Sizes such as 80GiB, or free (the device's free memory), within which bench depth (at every depth) and
            bench batch search for the largest batch, and bench length for the longest sequence; weights, gradients and
            optimizer states count.
        tolerance: Share by which the smallest size found not to fit may exceed the largest found to fit.
        length_unit: The longest sequence is found to a multiple of this number of tokens.
        rounds: Timed rounds, in each of which every arm takes one step; 0 measures no times.
        warm_up_rounds: Untimed rounds before the timed ones.
        rounds_at_largest: Timed rounds at the largest batch or the longest sequence of every arm; 0 measures no times
            there.

    """

    model: NetworkSection = field(default_factory=NetworkSection)

    dynamics: RecurrenceSection = field(default_factory=lambda: RecurrenceSection("midpoint"))

    arms: tuple[str, ...] = ("plain_store", "plain_checkpoint", "checkpoint", "rebuild")
    precision: Precision = "float32"
    head: Head = "chunked"
    optimizer: Literal["none", "adamw"] = "none"
    device: str = "cpu"
    batch_size: int = 4
    sequence_length: int = 512
    depths: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    sequence_lengths: tuple[int, ...] = ()
    budgets: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    tolerance: float = 0.02
    length_unit: int = 256
    rounds: int = 9
    warm_up_rounds: int = 2
    rounds_at_largest: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "length_unit"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("rounds", "warm_up_rounds", "rounds_at_largest", "tolerance"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("depths", "batch_sizes", "sequence_lengths"):
            values = getattr(self, name)
            require(all(value >= 1 for value in values), name, "whole numbers of at least 1", listed(values))
        for name in ("arms", "depths", "batch_sizes", "sequence_lengths", "budgets", "memory"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, "different from each other", listed(values))
        require(bool(self.arms), "arms", "at least one name", "none")
        for text in self.memory:
            if text != FREE:
                _check_size("memory", text, f"the word {FREE}")
        for text in self.budgets:
            if self.arm_to_equal(text) is None:
                _check_size("budgets", text, f"what follows {ORDINARY} in the name of an arm, such as checkpoint")
        self.arm_names()

    def arm_names(self) -> list[ArmName]:
        """Return the names in `arms`; raise UserError for a name that does not exist."""
        try:
            names = [ArmName.parse(text) for text in self.arms]
        except ValueError as error:
            raise UserError(f"arms: {error}") from error
        for name in names:
            if name.open and ORDINARY_CHECKPOINT not in self.arms:
                raise UserError(
                    f"The arm {name.text} needs the arm {ORDINARY_CHECKPOINT}, whose peak sets its budget; add that "
                    f"arm, or give a size, as in {name.text}:2GiB."
                )
        if ORDINARY_OFFLOAD in self.arms and self.device == "cpu":
            raise UserError(f"The arm {ORDINARY_OFFLOAD} needs a GPU: on a CPU there is nowhere to offload to.")
        return names

    def arm_to_equal(self, budget: str) -> str | None:
        """Return the arm of the ordinary network whose peak is the limit of a budget; None if the budget is a size."""
        try:
            return ArmName.parse(ORDINARY + budget).text
        except ValueError:
            return None

    def workload(self) -> MeasuredWorkload:
        """Return the network and the batch.

        Raises:
            UserError: if the network, the precision or the device does not exist, or if a sequence is longer than the
                model can read.

        """
        config = network_config(self.model, {"bos_token_id": None, "eos_token_id": None})
        with as_user_error():
            workload = MeasuredWorkload(
                config.to_dict(),
                self.batch_size,
                self.sequence_length,
                self.precision,
                self.head,
                self.optimizer,
                device=self.device,
                seed=self.model.seed,
            )
        longest = workload.longest_sequence
        for length in (self.sequence_length, *self.sequence_lengths):
            if longest is not None and length > longest:
                raise UserError(
                    f"A sequence of {length} tokens is longer than the {longest} that the model reads; shorten it, or "
                    f"raise max_position_embeddings in model.config."
                )
        return workload

    def recurrence(self) -> Dynamics:
        """Return the dynamics; raise UserError if they do not exist or an arm does not support them."""
        recurrence = build_dynamics(self.dynamics)
        for arm in self.arm_names():
            if arm.name in ("rebuild", "budget") and not arm.dynamics(recurrence).reversible:
                raise UserError(
                    f"The dynamics {recurrence.name} have no inverse; leave out the arm {arm.text}, or choose others."
                )
        return recurrence

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe in types that JSON supports."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def listed(values: Sequence[object]) -> str:
    """Return values as text for a sentence."""
    return ", ".join(map(str, values))


def _check_size(name: str, text: str, other: str) -> None:
    """Raise UserError unless `text` is a size of memory; `other` says what else the field takes."""
    try:
        parse_size(text)
    except ValueError:
        raise UserError(f"{name} takes sizes such as 24GiB or {other}, not {text!r}.") from None
