"""The Trainer's arguments for the training section of a recipe."""

import dataclasses
import types
import warnings
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments, get_scheduler

from revformers.errors import UserError, as_user_error
from revformers.private_api import missing_reporters
from revformers.training.argument_table import ARGUMENTS, FORMER, PROMPT_ARGUMENTS
from revformers.training.launched import launched_processes
from revformers.training.recipe import TrainerSection, TrainingSection, require_seed
from revformers.training.recipe_file import suggestion
from revformers.training.step_in_backward import check_step_in_backward

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def check_training(section: TrainingSection, output: str, activations: str) -> None:
    """Raise UserError for mistakes in the training section that show before the form of the data is known.

    Args:
        section: the training section.
        output: the run directory.
        activations: the dotted name of the recipe's field for the activation policy, for messages.

    """
    _check_names(section.arguments, activations, [*ARGUMENTS, *_fields(TrainingArguments)])
    known = {name: value for name, value in section.arguments.items() if name not in PROMPT_ARGUMENTS}
    trainer_arguments(dataclasses.replace(section, arguments=known), output, activations, TrainingArguments)


def trainer_arguments(
    section: TrainingSection, output: str, activations: str, kind: type[Arguments], **fixed: Any
) -> Arguments:
    """Return the Trainer's arguments for the training section of a recipe.

    Args:
        section: the training section.
        output: the run directory.
        activations: the dotted name of the recipe's field for the activation policy, for messages.
        kind: TrainingArguments or a subclass of it.
        fixed: further arguments, which the section must not set.

    Raises:
        UserError: for an unknown argument, an argument that a recipe refuses (see `argument_table`), a bad value, a
            package that is not installed, or hardware that the section does not fit.

    """
    launched_processes()  # before the arguments, which wait for processes that nobody started
    _check_names(section.arguments, activations, _fields(kind))
    given = {name: _word(name, value) for name, value in section.arguments.items()}
    _check_values(given, kind)
    _check_best(section, given)
    values = {
        "output_dir": output,
        "bf16": section.precision == "bfloat16",
        "fp16": section.precision == "float16",
        "eval_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would hide that a run diverges
        "prediction_loss_only": True,  # otherwise an evaluation would keep the logits of every token
        "remove_unused_columns": False,  # the data sets hold no columns that the model cannot take
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,  # ShowProgress replaces it
        "report_to": "none",
        # Unless told so, accelerate does not let processes without a GPU find each other, and each trains on its own.
        "use_cpu": not torch.accelerator.is_available(),
        **{field.name: getattr(section, field.name) for field in dataclasses.fields(TrainerSection)},
        **given,
        **fixed,
    }
    with as_user_error("The Trainer refuses the training section", (ImportError, TypeError, ValueError)):
        arguments = kind(**values)
        _rehearse(arguments)
    _check_devices(arguments)
    if section.optimizer_in_backward:
        check_step_in_backward(arguments)
    return arguments


def _fields(kind: type[TrainingArguments]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check_names(given: dict[str, Any], activations: str, known: list[str]) -> None:
    """Raise UserError for arguments that do not exist or that a recipe refuses; warn of those of later releases."""
    for name in given:
        if name in FORMER and name not in known:
            raise UserError(f"training.arguments has no {name!r}; {FORMER[name]}.")
        if name in ARGUMENTS and ARGUMENTS[name].remedy:
            remedy = ARGUMENTS[name].remedy.format(activations=activations)
            raise UserError(f"training.arguments cannot set {name!r}; {remedy}.")
        if name in PROMPT_ARGUMENTS and name not in known:
            raise UserError(f"training.arguments has {name!r} only for prompts and conversations; leave it out.")
        if name not in known:
            accepted = [other for other in known if other in ARGUMENTS and not ARGUMENTS[other].remedy]
            raise UserError(f"training.arguments has no {name!r}{suggestion(name, accepted)}")
        if name not in ARGUMENTS:
            warnings.warn(
                f"revformers does not know training.arguments.{name}, which transformers {transformers.__version__} "
                f"has; it is passed on, and no test covers it.",
                stacklevel=4,
            )


def _word(name: str, value: Any) -> Any:
    """Return the word that YAML 1.1 has read as False, where an argument takes it: no, without quotes."""
    return "no" if value is False and name in ARGUMENTS and "no" in ARGUMENTS[name].values else value


def _check_values(given: dict[str, Any], kind: type[TrainingArguments]) -> None:
    """Raise UserError for values that a recipe refuses, or that are not of the type of their argument."""
    hints = get_type_hints(kind)
    for name, value in given.items():
        accepted = ARGUMENTS[name].values if name in ARGUMENTS else ()
        if accepted and value not in accepted:
            raise UserError(f"training.arguments.{name} takes {', '.join(accepted)}, not {str(value)!r}.")
        if not _fits(value, hints[name]):
            wanted = " or ".join(str(getattr(one, "__name__", one)) for one in _alternatives(hints[name]))
            raise UserError(f"training.arguments.{name} takes {wanted}, not {value!r}.")
        if name == "data_seed" and value is not None:
            require_seed(f"training.arguments.{name}", value)


def _check_best(section: TrainingSection, given: dict[str, Any]) -> None:
    """Raise UserError if the best model may be one that was not saved."""
    if not given.get("load_best_model_at_end"):
        return
    need = "training.arguments.load_best_model_at_end needs a checkpoint of every evaluation"
    if given.get("save_strategy") == "no":
        raise UserError(f"{need}; leave out training.arguments.save_strategy.")
    if section.save_steps != section.eval_steps:
        raise UserError(
            f"{need}; set training.save_steps and training.eval_steps to one value instead of {section.save_steps} and "
            f"{section.eval_steps}."
        )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value from YAML is of the annotated type, or of one of its alternatives."""
    for one in _alternatives(annotation):
        kind = get_origin(one) or one
        if kind is Literal:
            fits = value in get_args(one)
        elif kind is float:
            fits = type(value) in (int, float)
        elif kind is int:
            fits = type(value) is int
        else:
            fits = not isinstance(kind, type) or isinstance(value, kind)
        if fits:
            return True
    return False


def _rehearse(arguments: TrainingArguments) -> None:
    """Make the optimizer, the schedule, the loader and the reporters' names of a run.

    This finds mistakes before the model is loaded.

    Raises:
        ImportError: for a package that is not installed.
        TypeError, ValueError: for options that the optimizer, the schedule or the loader do not take.

    """
    missing = missing_reporters(arguments.report_to)
    if missing:
        raise ImportError(f"report_to names {missing[0]}, which is not installed; install it, or leave report_to out.")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        optimizer = kind([nn.Parameter(torch.zeros(1))], **options)
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            arguments.get_warmup_steps(arguments.max_steps),
            arguments.max_steps,
            arguments.lr_scheduler_kwargs,
        )
        DataLoader(
            TensorDataset(torch.zeros(1)),
            num_workers=arguments.dataloader_num_workers,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            multiprocessing_context=getattr(arguments, "dataloader_multiprocessing_context", None),
        )


def _check_devices(arguments: TrainingArguments) -> None:
    """Raise UserError for devices on which the Trainer would not do what the section says."""
    if arguments.fp16 and arguments.device.type == "cpu":
        raise UserError(
            "training.precision float16 needs a GPU: on a CPU the Trainer would silently compute in float32; set it "
            "to float32 or bfloat16."
        )
    launched = launched_processes()
    if launched != arguments.world_size:
        raise UserError(
            f"{launched} processes were launched, but each would train without the others, because they have no GPUs "
            f"and training.arguments.use_cpu is false; leave it out."
        )
    if arguments.n_gpu > 1:
        raise UserError(
            f"The Trainer would copy the model to all {arguments.n_gpu} GPUs for every batch (DataParallel); start one "
            f"process for each GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one of them."
        )
