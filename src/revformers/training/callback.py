"""A callback for the trainers of transformers and TRL: verified gradients, memory by category, range of the states."""

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState

from revformers.engine.fixed_point import MAXIMUM_MAGNITUDE
from revformers.engine.proof.verdicts import UNSEEN
from revformers.errors import RebuildMismatchError
from revformers.models.discovery import unwrap
from revformers.models.state import require_reversible
from revformers.models.verify import GradientReport, gradients_set_aside, verify_gradients
from revformers.planning.meter import peak_by_category
from revformers.planning.timeline import MemoryByCategory
from revformers.private_api import has_accumulation_hooks

logger = logging.getLogger(__name__)

PREFIX = "reversible/"
"""What the names of all logged figures begin with."""


class ReversibleCallback(TrainerCallback):
    """Verifies the gradients of a reversible model on the trainer's first batch, and logs what its training takes.

        model = rf.make_reversible(AutoModelForCausalLM.from_pretrained("gpt2"), rf.BlendedMidpoint(1 / 16))
        callback = rf.ReversibleCallback()
        trainer = SFTTrainer(model, train_dataset=dataset, callbacks=[callback])
        trainer.train()
        print(callback.report)  # rebuilt gradients equal stored gradients to the bit ...
        print(callback.memory)  # weights, gradients, states, side information, ... in bytes
        print(trainer.state.log_history[0]["reversible/state_magnitude"])

    It works with transformers' Trainer and TRL's (SFT, DPO, GRPO, reward, ...). What it verifies is the first forward
    pass with gradients of the trainer's own training: its inputs are noted as they reach the model, and just before the
    first optimizer step (with gradient accumulation: after the first batch) the gradients that are rebuilt from them
    are compared with stored ones. The loss is the model's own where the trainer gives it labels, and otherwise (DPO,
    GRPO, rewards) a function of all its outputs: dynamics and layers are verified, not the trainer's loss. Gradients,
    random state, activation policy and the order of the data are left as they were. It takes three forward and backward
    passes, once.

    Logged with the losses, in `trainer.state.log_history` and by the callbacks that come after this one:

    * `reversible/state_magnitude`: the largest magnitude of a state or update since the last log, in training and
      evaluation, and `reversible/state_range`, the same as a share of what fixed point holds (2**22).
    * `reversible/memory_<category>` and `reversible/memory_total`: once, in bytes, the peak of a forward and backward
      pass of the first batch with the model's own activation policy; see `revformers.planning.meter`.
    * `reversible/cuda_peak`: on CUDA, bytes, the allocator's peak so far.

    A `RebuildMismatchError` or a `StateRangeError` that ends the training says, in a note below it, at which step, what
    it means and what to do.

    Args:
        verify: whether gradients are verified.
        memory: whether the peak is taken by category.

    Attributes:
        report: what was verified; None before, or where nothing was.
        memory: the peak by category; None before, or where it was not taken.

    Raises:
        ValueError: at the start of the training, for a model that is not reversible.
        RebuildMismatchError: just before the first optimizer step, where rebuilt gradients differ from stored ones.

    """

    def __init__(self, *, verify: bool = True, memory: bool = True) -> None:
        self.report: GradientReport | None = None
        self.memory: MemoryByCategory | None = None
        self._verifies, self._counts = verify, memory
        self._handle: RemovableHandle | None = None
        self._inputs: dict[str, Any] | None = None
        self._pending: dict[str, float] = {}
        self._step = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Refuse an ordinary model, and wait for the first forward pass."""
        model: nn.Module = kwargs["model"]
        require_reversible(model).largest_magnitude = 0.0
        self.report = self.memory = self._inputs = None
        self._pending = {}
        self._step = state.global_step
        self._stop_waiting()
        if self._verifies or self._counts:
            self._handle = model.register_forward_pre_hook(self._note_inputs, with_kwargs=True)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Note the step, for the errors that may follow."""
        self._step = state.global_step + 1

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Verify, after the first batch of several."""
        self._examine(kwargs["model"], kwargs.get("optimizer"))

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Verify, before anything was trained."""
        self._examine(kwargs["model"], kwargs.get("optimizer"))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Say where there was nothing to verify."""
        if self._handle is not None:
            self._stop_waiting()
            warnings.warn(
                f"ReversibleCallback could verify nothing: the trainer never called the forward of "
                f"{type(unwrap(kwargs['model'])).__name__} itself in its first step, as with use_liger_kernel; call "
                f"revformers.verify_gradients(model, batch) before training.",
                stacklevel=2,
            )

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Add this callback's figures to a log of the training loss."""
        if logs is None or "loss" not in logs:
            return
        reversible = require_reversible(kwargs["model"])
        figures = {
            "state_magnitude": reversible.largest_magnitude,
            "state_range": reversible.largest_magnitude / MAXIMUM_MAGNITUDE,
            **self._pending,
        }
        if args.device.type == "cuda":
            figures["cuda_peak"] = float(torch.cuda.max_memory_allocated(args.device))
        reversible.largest_magnitude, self._pending = 0.0, {}
        named = {PREFIX + name: value for name, value in figures.items()}
        logs.update(named)
        # The history has a copy of what was logged by then.
        state.log_history[-1].update(named)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the model alone."""
        self.close()

    def close(self) -> None:
        """Leave the model alone; after a training that an error ended `Trainer.train` calls it."""
        self._stop_waiting()
        self._inputs = None

    def explain(self, error: Exception) -> str:
        """Return what an error of reversible training means at this step, and what to do.

        A trainer's callbacks are not told of an error that ends the training, so `Trainer.train` adds this as a note.
        """
        if isinstance(error, RebuildMismatchError):
            meaning = (
                "a layer computed something else when it was evaluated again for the backward pass than in the forward "
                "pass. Gradients from it would be wrong, so training ends here."
            )
            if self.report is not None:
                meaning += " The gradients of the first batch were exact: what causes it came in since."
            remedy = (
                "Look for weights, buffers or settings that something changes between forward and backward, for "
                "modules that keep state from call to call, and for kernels that are not deterministic; "
                "revformers.Store() evaluates nothing again."
            )
        else:
            magnitude = f"{MAXIMUM_MAGNITUDE:,.0f}"
            meaning = f"states and updates must be finite and within {magnitude} to be rebuilt, and this one is not."
            remedy = (
                "Where reversible/state_magnitude grew from log to log, training diverges: lower the learning rate, or "
                "clip gradients. In the first steps the dynamics let the states grow: take a smaller step_size or "
                "blend."
            )
        return f"At step {self._step} of training: {meaning} {remedy}"

    def _note_inputs(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Keep what the first forward pass with gradients gets; those without are evaluations and references."""
        if not (model.training and torch.is_grad_enabled()):
            return
        self._stop_waiting()
        names = inspect.signature(unwrap(model).forward).parameters
        inputs = {**dict(zip(names, arguments, strict=False)), **keywords}
        self._inputs = {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def _examine(self, model: nn.Module, optimizer: Any) -> None:
        """Verify and measure on the inputs that were noted, once."""
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            return
        reversible = require_reversible(model)
        # Such hooks step the optimizer as soon as a gradient is there, also in a backward pass that only looks.
        if any(map(has_accumulation_hooks, model.parameters())):
            warnings.warn(
                "ReversibleCallback verifies nothing: something works on the gradients inside the backward pass, such "
                "as an optimizer, and would do so here; call revformers.verify_gradients(model, batch) before.",
                stacklevel=2,
            )
            return
        largest = reversible.largest_magnitude
        if self._verifies and reversible.dynamics.reversible:
            report = verify_gradients(model, inputs, loss=_loss_of)
            logger.info("%s", report)
            if not report.bit_exact:
                raise RebuildMismatchError(f"On the first batch of the training, {report}\n{UNSEEN}")
            self.report = report
            self._pending["gradients_exact"] = 1.0
        if self._counts:
            self.memory = _peak(model, inputs, optimizer)
            sizes = {**dataclasses.asdict(self.memory), "total": self.memory.total}
            self._pending.update({f"memory_{name}": float(size) for name, size in sizes.items()})
        reversible.largest_magnitude = largest

    def _stop_waiting(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _peak(model: nn.Module, inputs: dict[str, Any], optimizer: Any) -> MemoryByCategory:
    """Return the peak of a forward and backward pass with the model's own policy; it leaves nothing behind."""
    with gradients_set_aside(model) as random_state:
        step: Callable[[], None] = lambda: _loss_of(model(**inputs)).backward()  # noqa: E731
        with random_state.restored(), torch.enable_grad():
            return peak_by_category(step, model, optimizer)


def _loss_of(output: Any) -> Tensor:
    """Return the model's loss, or where it was given no labels a scalar that every number of its output changes."""
    if getattr(output, "loss", None) is not None:
        return output.loss
    values = output.logits if getattr(output, "logits", None) is not None else output[0]
    return values.float().logsumexp(-1).mean()
