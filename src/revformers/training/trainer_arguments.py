"""The Trainer's arguments for the training section of a recipe."""

import dataclasses
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from revformers.errors import UserError, as_user_error
from revformers.training.recipe import TrainerSection, TrainingSection
from revformers.training.recipe_file import suggestion
from revformers.training.step_in_backward import check_step_in_backward

Arguments = TypeVar("Arguments", bound=TrainingArguments)


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
        UserError: for an unknown argument, an argument that a recipe sets elsewhere, or a bad value.

    """
    owned = dict.fromkeys(fixed, "leave it out, the rest of the recipe decides it") | {
        "output_dir": "set output instead",
        "activation_checkpointing": f"set {activations} to checkpoint instead",
        "gradient_checkpointing": f"set {activations} to checkpoint instead",
        "resume_from_checkpoint": "give --resume instead",
        "bf16": "set training.precision instead",
        "fp16": "set training.precision instead",
    }
    known = [field.name for field in dataclasses.fields(kind)]
    for name in section.arguments:
        if name in owned:
            raise UserError(f"training.arguments cannot set {name!r}; {owned[name]}.")
        if name not in known:
            raise UserError(f"training.arguments has no {name!r}{suggestion(name, known)}")
    values = {
        "output_dir": output,
        "bf16": section.precision == "bfloat16",
        "fp16": section.precision == "float16",
        "eval_strategy": "steps",
        "logging_first_step": True,
        "prediction_loss_only": True,  # otherwise an evaluation would keep the logits of every token
        "remove_unused_columns": False,  # the data sets hold no columns that the model cannot take
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,  # ShowProgress replaces it
        "report_to": "none",
        **{field.name: getattr(section, field.name) for field in dataclasses.fields(TrainerSection)},
        **section.arguments,
        **fixed,
    }
    with as_user_error("The Trainer refuses the training section", (ImportError, TypeError, ValueError)):
        arguments = kind(**values)
    if section.optimizer_in_backward:
        check_step_in_backward(arguments)
    return arguments
