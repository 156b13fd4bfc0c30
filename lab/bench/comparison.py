"""The quickstart's comparison of every dynamics, of three ways to hold activations, and of memory against depth."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, default_data_collator

from lab.bench import numbers
from lab.bench.arm_names import setups_of
from lab.bench.depth import DepthPoint, as_rows, growths, mean_side_information_bits
from lab.bench.memory import PeakMemory
from lab.bench.process import measure_side_by_side
from lab.bench.short_training import mean_loss, train_in_turns
from lab.bench.step_time import StepTimes
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import NotReversibleError, dynamics, verify_gradients
from revformers.activations import Rebuild
from revformers.data.blocks import build_datasets
from revformers.dynamics import Dynamics
from revformers.errors import UserError, as_user_error
from revformers.head.loss import apply_head
from revformers.setup import STORE, Precision, Setup
from revformers.training.model import build_config, build_dynamics, build_model
from revformers.training.recipe import Recipe

ARMS = ("store", "checkpoint", "rebuild")
VALIDATION_BATCHES = 2
DEPTH_VOCABULARY = 256
DEPTH_SEQUENCES = 2

Progress = Callable[[str], object]


@dataclass(frozen=True)
class ComparisonOptions:
    """How much to measure; the defaults take a few minutes on two cores with the quickstart's recipe.

    Attributes:
        dynamics_steps: Optimizer steps of each dynamics.
        arm_steps: Optimizer steps of each way to hold activations.
        depths: Numbers of layers at which memory is measured.
        processes_at_once: Processes that measure memory side by side.
        device: Device to measure on.

    """

    dynamics_steps: int = 16
    arm_steps: int = 10
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    processes_at_once: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.dynamics_steps, self.arm_steps) < 2:
            raise UserError("A comparison needs at least 2 steps, as the first is not timed.")
        if len(set(self.depths)) < 2 or min(self.depths) < 1:
            raise UserError("Memory against depth needs at least two different numbers of layers, of 1 or more.")
        if self.processes_at_once < 1:
            raise UserError("At least one process must measure memory.")


class Comparison:
    """Compares ways to train the network of one recipe, on its own text.

    Args:
        recipe: gives the network, its dynamics, the data and the learning rate.
        options: how much to measure.
        progress: called with one line before each part.

    Raises:
        UserError: if the recipe's dynamics cannot be reversed, or if `build_datasets` raises it.

    """

    def __init__(self, recipe: Recipe, options: ComparisonOptions, progress: Progress = lambda line: None) -> None:
        self._recipe = recipe
        self._options = options
        self._progress = progress
        self._dynamics = build_dynamics(recipe.dynamics)
        if not self._dynamics.reversible:
            raise UserError(
                "The recipe trains an ordinary network, which cannot be rebuilt; "
                "set dynamics.name to another recurrence."
            )
        self.workload = workload_of(recipe, options.device)
        progress("Preparing the text")
        _, training, validation = build_datasets(recipe.data, seed=recipe.training.seed)
        batch_size = recipe.training.per_device_train_batch_size
        self._batches = _first_batches(training, batch_size, max(options.dynamics_steps, options.arm_steps), recipe)
        self._held_out = _first_batches(validation, batch_size, VALIDATION_BATCHES, recipe)

    def run(self) -> dict[str, Any]:
        """Return every part of the comparison, in types that JSON supports."""
        recipe, options = self._recipe, self._options
        return {
            "recipe": recipe.to_dict(),
            "options": {**dataclasses.asdict(options), "depths": sorted(options.depths)},
            "network": {
                "architecture": recipe.model.architecture,
                "layers": self.workload.layers,
                "width": self.workload.width,
                "vocabulary": self.workload.config.vocab_size,
                "parameters": sum(parameter.numel() for parameter in build_model(recipe).parameters()),
                "batch_size": self.workload.batch_size,
                "sequence_length": self.workload.sequence_length,
                "precision": self.workload.precision,
                "device": self.workload.device,
                "head": self.workload.head,
            },
            "dynamics": self.compare_dynamics(),
            **self.compare_arms(),
        }

    def compare_dynamics(self) -> list[dict[str, Any]]:
        """Train the network with each dynamics for a few steps; return one row each, the ordinary network first.

        A dynamics that the architecture does not support gets a row with the reason and no figures.
        """
        steps = self._options.dynamics_steps
        self._progress(f"Training the network with every dynamics, {steps} steps each")
        ordinary = dynamics.create("residual")
        candidates: list[Dynamics] = [ordinary, *_dynamics_to_compare(self._dynamics)]
        models: dict[str, PreTrainedModel] = {}
        rows: list[dict[str, Any]] = []
        for candidate in candidates:
            arm = Setup(candidate, Rebuild()) if candidate.reversible else STORE
            row: dict[str, Any] = {
                "name": candidate.name,
                "recurrence": candidate.recurrence,
                "activations": "rebuild" if candidate.reversible else "store",
                "side_information_bits": mean_side_information_bits(candidate, range(self.workload.layers))
                if candidate.reversible
                else None,
            }
            rows.append(row)
            try:
                models[candidate.recurrence] = self._model(arm)
            except NotReversibleError as error:
                row["unavailable"] = str(error)
        training = self._train(models, steps)
        self._progress("Verifying the gradients of every dynamics")
        for row in rows:
            model = models.get(row["recurrence"])
            if model is None:
                continue
            row["first_loss"] = training.losses[row["recurrence"]][0]
            row["validation_loss"] = mean_loss(self.workload, model, self._held_out)
            row.update(_times(training.times, row["recurrence"], {"ordinary": ordinary.recurrence}))
            if row["activations"] == "rebuild":
                report = verify_gradients(model, self._held_out[0])
                row["bit_exact"], row["decided"] = report.bit_exact, report.decided
                row["max_relative_error"] = report.max_relative_error
        return rows

    def compare_arms(self) -> dict[str, Any]:
        """Compare storing, checkpointing and rebuilding: the parts "arms", on the recipe's network, and "depth"."""
        steps = self._options.arm_steps
        self._progress(f"Storing, checkpointing and rebuilding in turns, {steps} steps each")
        arms = setups_of(ARMS, self._dynamics)
        models = {name: self._model(arm) for name, arm in arms.items()}
        training = self._train(models, steps)
        report = verify_gradients(models["rebuild"], self._held_out[0])
        memory, points = self._measure_memory(arms)
        rows = [
            {
                "arm": name,
                "peak": memory[name].peak,
                "weights_and_gradients": memory[name].weights_and_gradients,
                "losses": training.losses[name],
                "same_losses_as_store": training.losses[name] == training.losses["store"],
                "same_weights_as_store": _same_weights(models[name], models["store"]),
                **_times(training.times, name, {other: other for other in ("store", "checkpoint")}),
            }
            for name in arms
        ]
        return {
            "arms": {
                "recurrence": self._dynamics.recurrence,
                "layer_input_bytes": self.workload.layer_input_bytes,
                "rows": rows,
                "verification": {**dataclasses.asdict(report), "text": str(report)},
            },
            "depth": self._depth_part(points, arms),
        }

    def _measure_memory(self, arms: Mapping[str, Setup]) -> tuple[dict[str, PeakMemory], list[DepthPoint]]:
        """Measure the recipe's network and, if its dynamics fit every depth, the network of varied depth.

        Each arm has one process for all its figures, because starting a process takes longer than measuring a figure.
        """
        depths = () if self._misfit() else self._options.depths
        at_depths = f" and at {numbers.listed([str(depth) for depth in depths])} layers" if depths else ""
        self._progress(f"Measuring the memory of one step{at_depths}")
        workloads = [self.workload, *(self._depth_workload.with_layers(layers) for layers in depths)]
        measured = measure_side_by_side(
            [[(workload, arm) for workload in workloads] for arm in arms.values()], self._options.processes_at_once
        )
        memory = {name: of_arm[0] for name, of_arm in zip(arms, measured, strict=True)}
        points = [
            DepthPoint(name, layers, point)
            for name, of_arm in zip(arms, measured, strict=True)
            for layers, point in zip(depths, of_arm[1:], strict=True)
        ]
        return memory, points

    def _depth_part(self, points: list[DepthPoint], arms: Mapping[str, Setup]) -> dict[str, Any]:
        """Return the measurements at varied depth, or the reason that there are none."""
        if misfit := self._misfit():
            return {"unavailable": misfit}
        workload = self._depth_workload
        return {
            "recurrence": self._dynamics.recurrence,
            "steps_per_layer": self._dynamics.steps_per_layer,
            "width": workload.width,
            "vocabulary": DEPTH_VOCABULARY,
            "batch_size": workload.batch_size,
            "sequence_length": workload.sequence_length,
            "layer_input_bytes": workload.layer_input_bytes,
            **as_rows(points, growths(points, workload, arms)),
        }

    def _misfit(self) -> str | None:
        """Return the reason that the recipe's dynamics do not fit every depth, or None."""
        try:
            for depth in self._options.depths:
                self._dynamics.check(depth)
        except ValueError as error:
            return str(error)
        return None

    @property
    def _depth_workload(self) -> MeasuredWorkload:
        """A Llama with a small vocabulary and the recipe's width.

        A large vocabulary would dominate the peak of shallow networks and hide how the layers' share grows.
        """
        length = self.workload.sequence_length
        config = llama_config(1, self.workload.width, DEPTH_VOCABULARY, length)
        return dataclasses.replace(self.workload, model_config=config, batch_size=DEPTH_SEQUENCES)

    def _model(self, arm: Setup) -> PreTrainedModel:
        """Return the recipe's network with its seeded weights and the arm's setup."""
        model = cast(PreTrainedModel, build_model(self._recipe))
        apply_head(model, self._recipe.loss.head, self._recipe.loss.chunk)
        return arm.apply(model).to(self.workload.device).train()

    def _train(self, models: Mapping[str, PreTrainedModel], steps: int) -> Any:
        settings = self._recipe.training
        return train_in_turns(
            self.workload,
            models,
            self._batches[:steps],
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            largest_gradient_norm=settings.max_grad_norm or float("inf"),
        )


def workload_of(recipe: Recipe, device: str = "cpu") -> MeasuredWorkload:
    """Return the network and the batch of a recipe as a workload.

    Raises:
        UserError: if PyTorch cannot use the device, or for float16, which needs the Trainer's loss scaling.

    """
    if recipe.training.precision == "float16":
        raise UserError("A comparison runs in float32 or bfloat16; set training.precision to one of them.")
    precision: Precision = "bfloat16" if recipe.model.dtype == "bfloat16" else "float32"
    if precision == "float32" and recipe.training.precision == "bfloat16":
        precision = "bfloat16_autocast"
    with as_user_error():
        return MeasuredWorkload(
            model_config=build_config(recipe).to_dict(),
            batch_size=recipe.training.per_device_train_batch_size,
            sequence_length=recipe.data.block_length,
            precision=precision,
            device=device,
            seed=recipe.model.seed,
            head=recipe.loss.head,
        )


def _dynamics_to_compare(own: Dynamics) -> list[Dynamics]:
    """Return every reversible dynamics with its default options, except the recipe's own, which keeps its options.

    Dynamics that evaluate two layers per step are for pretrained networks; only the recipe's own is included.
    """
    options: dict[str, dict[str, Any]] = {"blended_midpoint": {"blend": "1/2"}}
    names = [
        name
        for name, kind in dynamics.DYNAMICS.items()
        if kind.reversible and (kind.evaluations_per_step == 1 or name == own.name)
    ]
    return [own if name == own.name else dynamics.create(name, **options.get(name, {})) for name in names]


def _first_batches(blocks: Iterable[Any], batch_size: int, number: int, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Return the first batches of a seeded shuffle of `blocks`, or of a stream in its own order."""
    streamed = not hasattr(blocks, "__getitem__")
    loader = DataLoader(
        cast(Any, blocks),
        batch_size=batch_size,
        shuffle=None if streamed else True,
        generator=torch.Generator().manual_seed(recipe.training.seed),
        collate_fn=default_data_collator,
        drop_last=True,
    )
    batches = list(islice(loader, number))
    if len(batches) < number:
        raise UserError(
            f"The comparison takes {number} batches of {batch_size} blocks, but {recipe.data.source} holds "
            f"{len(batches)}; give it more text, or lower the steps or training.per_device_train_batch_size."
        )
    return batches


def _times(times: StepTimes, name: str, references: Mapping[str, str]) -> dict[str, Any]:
    """Return the quartiles of seconds per step, and of the ratios to each reference; the keys name the references."""
    ratios = {f"time_over_{key}": dataclasses.asdict(times.ratio(name, other)) for key, other in references.items()}
    return {"seconds": dataclasses.asdict(times.summary(name)), **ratios}


def _same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Return whether two networks have the same parameters to the bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
