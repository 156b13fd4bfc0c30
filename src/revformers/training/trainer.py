"""Extensions of transformers' Trainer: checks of the network on resuming, reversible weight files, model cards."""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerState

from revformers.checkpoints.adapter_base import DESCRIPTION, PREDICTORS, read_description
from revformers.checkpoints.card import CARD_NAME, add_section
from revformers.checkpoints.marks import KEY
from revformers.checkpoints.model_files import CONFIG_NAME, VARIANT, weight_files
from revformers.errors import ModelFilesError, RebuildMismatchError, StateRangeError
from revformers.head.loss import HeadLoss, head_loss, observe_head_loss
from revformers.models.discovery import unwrap
from revformers.models.identity import in_words, read_identity
from revformers.models.parts import reversible_stack
from revformers.private_api import warn_after_loading
from revformers.training.callback import ReversibleCallback

Function = Callable[..., Any]


def check_checkpoint(model: Any, directory: str | os.PathLike) -> None:
    """Raise ValueError if the checkpoint in `directory` belongs to another network than `model`.

    Weights are only valid under the dynamics that they were trained with. A checkpoint without a config.json, as
    sharded training alone writes it, is not checked; the checkpoint of an adapter is checked when it is loaded.
    """
    file = Path(directory) / CONFIG_NAME
    if not file.is_file():
        return
    description = read_description(file).get(KEY)
    saved, own = None if description is None else read_identity(description, file), reversible_stack(model)
    differences = saved.differences(own) if saved is not None and own is not None else []
    if (saved is None) == (own is None) and not differences:
        return
    apart = f"; they differ in {', '.join(differences)}" if differences else ""
    remedy = (
        "load the model to train from it, with revformers.from_pretrained"
        if saved is not None
        else "load the model to train from it, with transformers"
    )
    raise ValueError(
        f"The checkpoint {directory} is that of {in_words(saved)}, and the model to train is {in_words(own)}{apart}; "
        f"{remedy}, or train from another checkpoint."
    )


def train(original: Function, trainer: Any, *arguments: Any, **keywords: Any) -> Any:
    """Train; refuse what would replace a teacher, warn of another reference, and add callbacks' notes to errors."""
    _check_trainer(trainer)
    reference, own = getattr(trainer, "ref_model", None), reversible_stack(trainer.model)
    if reference is not None and own is not None:
        other = reversible_stack(reference)
        if other is None or other.differences(own):
            warnings.warn(
                f"The ref_model of this {type(trainer).__name__} is {in_words(other)}, and the model to train is "
                f"{in_words(own)}, so they differ before training; leave ref_model out to use a copy of the model.",
                stacklevel=3,
            )
    callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, ReversibleCallback)]
    try:
        with _head_loss_watched(trainer):
            return original(trainer, *arguments, **keywords)
    except (RebuildMismatchError, StateRangeError) as error:
        for callback in callbacks:
            error.add_note(callback.explain(error))
        raise
    finally:
        for callback in callbacks:
            callback.close()


def _differs_in_training(model: Any) -> bool:
    """Whether the model has a head loss that another loss must not replace."""
    loss = head_loss(model)
    return loss is not None and loss.differs_in_training


@contextmanager
def _head_loss_watched(trainer: Any) -> Iterator[None]:
    """Watch in this block that the head loss of the trainer's model is used, if it has one to watch."""
    if trainer.model_init is None and not _differs_in_training(trainer.model):
        yield
        return
    watch = WatchHeadLoss(trainer)
    trainer.callback_handler.callbacks.insert(0, watch)  # before ReversibleCallback, which computes the head loss too
    try:
        yield
    finally:
        trainer.remove_callback(watch)
        watch.close()


class WatchHeadLoss(TrainerCallback):
    """Raises ValueError before the first optimizer step if the trainer's own loss drops a teacher or weights.

    Trainers compute their losses in many ways, some of which never call the model's forward. The model is the one that
    the training begins with, which `model_init` may have made after `Trainer.train` was called.
    """

    def __init__(self, trainer: Any) -> None:
        self._model: Any = None
        self._computed = False
        self._cause = (
            "label_smoothing_factor"
            if trainer.label_smoother is not None
            else "compute_loss_func"
            if trainer.compute_loss_func is not None
            else f"The loss of the {type(trainer).__name__}"
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Wait for the model's head loss, if it differs from the plain cross-entropy."""
        if _differs_in_training(kwargs["model"]):
            self._model = kwargs["model"]
            observe_head_loss(self._model, self._note)

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check after the first of several accumulated batches."""
        self._check()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check before the first optimizer step."""
        self._check()

    def close(self) -> None:
        """Wait no longer."""
        if self._model is not None:
            observe_head_loss(self._model, None)
            self._model = None

    def _note(self) -> None:
        self._computed = True

    def _check(self) -> None:
        loss = None if self._model is None else head_loss(self._model)
        self.close()
        if loss is not None and not self._computed:
            raise ValueError(
                f"{self._cause} replaces the loss that set_head_loss gave the model, so {_lost(loss)} would have no "
                f"effect; use transformers' Trainer without that loss, or call revformers.set_head_loss(model, None)."
            )


def _lost(loss: HeadLoss) -> str:
    """Return in words what a head loss has that the plain cross-entropy has not."""
    return "its teacher" if loss.distillation else "its weight of the cross-entropy"


def prediction_step(
    original: Function, trainer: Any, model: Any, inputs: Any, prediction_loss_only: bool, *others: Any, **keywords: Any
) -> Any:
    """Refuse to return predictions of a model that computes only its loss."""
    if not prediction_loss_only and inputs.get("labels") is not None and _reads_head_loss(trainer):
        raise ValueError(NO_LOGITS)
    return original(trainer, model, inputs, prediction_loss_only, *others, **keywords)


NO_LOGITS = (
    "compute_metrics and predict read the logits of all tokens, which a model with a head loss does not compute when "
    "it gets labels; call revformers.set_head_loss(model, None) to train with them, or leave compute_metrics out."
)


def _reads_head_loss(trainer: Any) -> bool:
    """Whether the loss of an evaluation is the model's head loss, in whose output there are no logits."""
    return head_loss(trainer.model) is not None and trainer.label_smoother is None and trainer.compute_loss_func is None


def _check_trainer(trainer: Any) -> None:
    """Raise ValueError for what would stop the training later, or stop it without a reason that a reader can see."""
    count = trainer.args.n_gpu
    if count > 1 and reversible_stack(trainer.model) is not None:
        raise ValueError(
            f"The Trainer would copy the model to all {count} GPUs for every batch (DataParallel), which a reversible "
            f"model cannot be; start one process for each GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one."
        )
    evaluates = trainer.compute_metrics is not None and trainer.args.eval_strategy != "no"
    if evaluates and type(trainer).prediction_step is Trainer.prediction_step and _reads_head_loss(trainer):
        raise ValueError(NO_LOGITS)


def load_from_checkpoint(original: Function, trainer: Any, resume_from_checkpoint: str, model: Any = None) -> None:
    """Refuse the checkpoint of another network, and read the weights of a reversible one."""
    model = trainer.model if model is None else model
    check_checkpoint(model, resume_from_checkpoint)
    with _damage_named(resume_from_checkpoint):
        if not _load_weights(trainer, model, resume_from_checkpoint):
            original(trainer, resume_from_checkpoint, model)


def load_best_model(original: Function, trainer: Any) -> None:
    """Do the same as `load_from_checkpoint`, for the best checkpoint."""
    directory = trainer.state.best_model_checkpoint
    check_checkpoint(trainer.model, directory)
    with _damage_named(directory):
        if trainer.is_deepspeed_enabled or not _load_weights(trainer, trainer.model, directory):
            original(trainer)


@contextmanager
def _damage_named(directory: str | os.PathLike) -> Iterator[None]:
    """Raise ModelFilesError, which names the file, where weights of a checkpoint are damaged or cut short."""
    try:
        yield
    except SafetensorError as error:
        for file in sorted(Path(directory).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as fault:
                raise ModelFilesError(
                    f"{file} is damaged or incomplete ({fault}); resume from another checkpoint."
                ) from error
        raise


def _load_weights(trainer: Any, model: Any, directory: str) -> bool:
    """Load the weights of a reversible model, whose files have their own names; return whether it found any."""
    files = weight_files(Path(directory), VARIANT)
    if not files or trainer.is_fsdp_enabled or reversible_stack(model) is None:
        return False
    model = trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
    weights = {name: value for file in files for name, value in load_file(file).items()}
    if not weights.keys() <= model.state_dict().keys():
        # Many families (mixtures of experts, Llava) save weights under other names, which from_pretrained converts.
        # The widest type of the files represents the numbers of all others.
        dtypes = {one.dtype for one in weights.values() if one.is_floating_point()}
        dtype = functools.reduce(torch.promote_types, dtypes)
        weights = type(model).from_pretrained(directory, dtype=dtype).state_dict()
    result = model.load_state_dict(weights, strict=False)
    own = model.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in weights if name in own}
    # a tied weight is in the file under another name
    result.missing_keys[:] = [name for name in result.missing_keys if id(own[name]) not in loaded]
    warn_after_loading(trainer, result)
    return True


def push_from_checkpoint(original: Function, trainer: Any, checkpoint_folder: str) -> Any:
    """Copy the weights into the uploaded folder, as the Trainer does with the file names that it knows."""
    if trainer.is_world_process_zero() and reversible_stack(trainer.model) is not None:
        for name in (f"model*{VARIANT}*", DESCRIPTION, PREDICTORS):
            for file in Path(checkpoint_folder).glob(name):
                shutil.copy(file, trainer.args.output_dir)
    return original(trainer, checkpoint_folder)


def create_model_card(original: Function, trainer: Any, *arguments: Any, **keywords: Any) -> Any:
    """Add a description of the network to the card that a trainer writes."""
    result = original(trainer, *arguments, **keywords)
    card = Path(trainer.args.output_dir) / CARD_NAME
    if trainer.is_world_process_zero() and card.is_file() and reversible_stack(trainer.model) is not None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        add_section(card, unwrap(model), adapter=unwrap(model) is not model)
    return result
