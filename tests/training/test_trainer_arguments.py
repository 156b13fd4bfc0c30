import dataclasses

import pytest
from transformers import TrainingArguments

from revformers.errors import UserError
from revformers.training.recipe import TrainerSection, TrainingSection
from revformers.training.trainer_arguments import trainer_arguments


def arguments_of(tmp_path, section, **fixed):
    further = {"use_cpu": True, **section.arguments}
    section = dataclasses.replace(section, arguments=further)
    return trainer_arguments(section, str(tmp_path), "dynamics.activations", TrainingArguments, **fixed)


def test_every_field_reaches_the_trainer(tmp_path):
    section = TrainingSection(max_steps=3, precision="bfloat16", arguments={"adam_epsilon": 1e-7})
    arguments = arguments_of(tmp_path, section)
    for field in dataclasses.fields(TrainerSection):
        assert getattr(arguments, field.name) == getattr(section, field.name)
    assert (arguments.adam_epsilon, arguments.bf16, arguments.fp16) == (1e-7, True, False)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (TrainingSection(arguments={"adam_epsilo": 1}), "has no 'adam_epsilo'; did you mean 'adam_epsilon'"),
        (TrainingSection(arguments={"output_dir": "x"}), "cannot set 'output_dir'; set output instead"),
        (TrainingSection(arguments={"fp16": True}), "set training.precision instead"),
        (TrainingSection(arguments={"num_train_epochs": 2}), "the rest of the recipe decides it"),
        (TrainingSection(lr_scheduler_type="zigzag"), "The Trainer refuses the training section: "),
        (TrainingSection(optimizer_in_backward=True), "set training.max_grad_norm to 0"),
    ],
)
def test_what_the_trainer_does_not_take_is_one_sentence(tmp_path, section, message):
    with pytest.raises(UserError, match=message) as caught:
        arguments_of(tmp_path, section, num_train_epochs=1)
    assert "\n" not in str(caught.value)
