"""The callback for transformers' and TRL's trainers that verifies gradients and logs memory and state magnitudes."""

import dataclasses
import inspect
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState

from revformers.engine.fixed_point import INT64
from revformers.engine.proof.mismatch import UNSEEN
from revformers.errors import RebuildMismatchError
from revformers.models.discovery import unwrap
from revformers.models.gradient_report import GradientReport
from revformers.models.parts import require_reversible
from revformers.models.processes import is_shared
from revformers.models.verify import gradients_set_aside, verify_gradients
from revformers.planning.meter import peak_by_category
from revformers.planning.timeline import MemoryByCategory
from revformers.private_api import has_accumulation_hooks
from revformers.training.rounded_updates import rounded_updates

logger = logging.getLogger(__name__)

PREFIX = "reversible/"
"""Prefix of the names of all logged figures."""


class ReversibleCallback(TrainerCallback):
    """Verifies the gradients of a reversible model on the trainer's first batch, and logs its memory and magnitudes.

        model = rf.make_reversible(AutoModelForCausalLM.from_pretrained("gpt2"), rf.BlendedMidpoint(1 / 16))
        callback = rf.ReversibleCallback()
        trainer = SFTTrainer(model, train_dataset=dataset, callbacks=[callback])
        trainer.train()
        print(callback.report)  # rebuilt gradients equal stored gradients to the bit ...
        print(callback.memory)  # weights, gradients, states, side information, ... in bytes
        print(trainer.state.log_history[0]["reversible/state_magnitude"])

    It works with transformers' Trainer and TRL's trainers (SFT, DPO, GRPO, reward, ...). It records the inputs of the
    first forward pass with gradients. Just before the first optimizer step (with gradient accumulation: after the first
    batch, unless processes share the model) it compares the rebuilt gradients of these inputs with stored ones. The
    loss is the model's own if the trainer gives it labels, and otherwise (DPO, GRPO, rewards) a function of all its
    outputs: dynamics and layers are verified, not the trainer's loss. Gradients, random state, activation policy and
    the order of the data do not change.

    The verification costs two forward and backward passes, once, and the figures of memory cost one more, or two with a
    budget. Where kernels of the backward pass vary from call to call, as those of fused attention do on GPUs, the
    verification costs up to seven (see `revformers.verify_gradients`); if one of them has no deterministic form, the
    callback warns that it could not compare. Under DistributedDataParallel each process verifies for itself, and one
    that finds a wrong gradient raises an error while the others wait for it.

    These figures are logged with the losses, in `trainer.state.log_history` and by the callbacks after this one:

    * `reversible/state_magnitude`: the largest magnitude of a state or update since the last log, in training and
      evaluation, and `reversible/state_range`, the same as a fraction of what the states hold in the format of the
      training (4 million in 64 bits, 32,512 in 32 bits with 16 binary digits after the point). In 32 bits a
      step also has to hold the sum of its terms, so a `StateRangeError` may come while this is below 1.
    * `reversible/memory_<category>` and `reversible/memory_total`: once, in bytes, the peak of a forward and backward
      pass of the first batch with the model's own activation policy; see `revformers.planning.meter`.
    * `reversible/cuda_peak`: on CUDA, bytes, the allocator's peak so far.

    At the start it warns if weights in a type of 16 bits will hardly move, because updates as small as the learning
    rate round to nothing. A `RebuildMismatchError` or a `StateRangeError` that ends the training gets a note with the
    step and what the callback has seen before.

    Args:
        verify: whether to verify gradients.
        memory: whether to measure the peak by category.

    Attributes:
        report: the result of the verification; None if none has been made, or none could be.
        memory: the peak by category; None if it was not measured yet.

    Raises:
        ValueError: at the start of the training, for a model that is not reversible.
        RebuildMismatchError: just before the first optimizer step, if rebuilt gradients differ from stored ones.

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
        remedy = "keep the weights in float32 and set bf16=True in the arguments, or raise the learning rate"
        optimizer = kwargs.get("optimizer") if state.is_world_process_zero else None
        if optimizer is not None and (warning := rounded_updates(optimizer, remedy)):
            warnings.warn(warning, stacklevel=2)
        if self._verifies or self._counts:
            self._handle = model.register_forward_pre_hook(self._note_inputs, with_kwargs=True)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record the step, for the notes of errors."""
        self._step = state.global_step + 1

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Verify after the first of several accumulated batches; FSDP may hold their gradients back until the last."""
        if not is_shared(kwargs["model"]):
            self._examine(kwargs["model"], kwargs.get("optimizer"))

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Verify before the first optimizer step."""
        self._examine(kwargs["model"], kwargs.get("optimizer"))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Warn if no forward pass was seen in the first step."""
        if self._handle is not None:
            self._stop_waiting()
            warnings.warn(
                f"ReversibleCallback could verify nothing: in its first step the trainer never called the forward of "
                f"{type(unwrap(kwargs['model'])).__name__} itself (with use_liger_kernel, for example); call "
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
            "state_range": reversible.largest_magnitude / (reversible.fixed_point or INT64).maximum_magnitude,
            **self._pending,
        }
        if args.device.type == "cuda":
            figures["cuda_peak"] = float(torch.cuda.max_memory_allocated(args.device))
        reversible.largest_magnitude, self._pending = 0.0, {}
        named = {PREFIX + name: value for name, value in figures.items()}
        logs.update(named)
        # The history already has a copy of the log.
        state.log_history[-1].update(named)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the hook from the model."""
        self.close()

    def close(self) -> None:
        """Remove the hook from the model; `Trainer.train` calls this after an error too."""
        self._stop_waiting()
        self._inputs = None

    def explain(self, error: Exception) -> str:
        """Return when an error of reversible training came, and what the callback knows of it beyond its message.

        Trainers do not tell their callbacks of an error that ends the training, so `Trainer.train` adds this as a note.
        """
        if isinstance(error, RebuildMismatchError):
            before = "" if self.report is None else ". The gradients of the first batch were exact"
            return f"This was in step {self._step} of training{before}."
        return (
            f"This was in step {self._step} of training. If reversible/state_magnitude grew from log to log, training "
            f"diverges: lower the learning rate, or clip gradients. If it happens in the first steps, the dynamics let "
            f"the states grow: use a smaller step_size or blend."
        )

    def _note_inputs(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Keep the inputs of the first forward pass with gradients; evaluations and references run without."""
        if not (model.training and torch.is_grad_enabled()):
            return
        self._stop_waiting()
        names = inspect.signature(unwrap(model).forward).parameters
        inputs = {**dict(zip(names, arguments, strict=False)), **keywords}
        self._inputs = {name: value.detach() if isinstance(value, Tensor) else value for name, value in inputs.items()}

    def _examine(self, model: nn.Module, optimizer: Any) -> None:
        """Verify and measure once, on the recorded inputs."""
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            return
        reversible = require_reversible(model)
        # Such hooks step the optimizer as soon as a gradient exists, and so in a backward pass that only measures.
        if any(map(has_accumulation_hooks, model.parameters())):
            warnings.warn(
                "ReversibleCallback verifies nothing: hooks on the parameters, such as those of an optimizer, use the "
                "gradients inside the backward pass, and would do so here; call revformers.verify_gradients(model, "
                "batch) before training.",
                stacklevel=2,
            )
            return
        if self._verifies and reversible.dynamics.reversible:
            report = verify_gradients(model, inputs, loss=_loss_of)
            logger.info("%s", report)
            if report.bit_exact:
                self.report = report
                self._pending["gradients_exact"] = 1.0
            elif report.decided:
                raise RebuildMismatchError(f"On the first batch of the training, {report}\n{UNSEEN}")
            else:
                warnings.warn(
                    f"On the first batch of the training, {report}\nThe training goes on: what layers hand to "
                    f"autograd is compared in every step.",
                    stacklevel=2,
                )
        if self._counts:
            with reversible.range_watch.set_aside():
                self.memory = _peak(model, inputs, optimizer)
            sizes = {**dataclasses.asdict(self.memory), "total": self.memory.total}
            self._pending.update({f"memory_{name}": float(size) for name, size in sizes.items()})

    def _stop_waiting(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _peak(model: nn.Module, inputs: dict[str, Any], optimizer: Any) -> MemoryByCategory:
    """Return the peak of a forward and backward pass with the model's own policy, without side effects.

    Of a policy that observes the first pass of a batch shape, the second is measured.
    """

    def step() -> None:
        _loss_of(model(**inputs)).backward()

    if require_reversible(model).activations.observes:
        with gradients_set_aside(model) as random_state, random_state.restored(), torch.enable_grad():
            step()
    with gradients_set_aside(model) as random_state, random_state.restored(), torch.enable_grad():
        return peak_by_category(step, model, optimizer)


def _loss_of(output: Any) -> Tensor:
    """Return the model's loss, or, if it was given no labels, a scalar that depends on its whole output."""
    if getattr(output, "loss", None) is not None:
        return output.loss
    values = output.logits if getattr(output, "logits", None) is not None else output[0]
    return values.float().logsumexp(-1).mean()
