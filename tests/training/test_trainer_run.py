import pytest
from transformers import TrainingArguments

from revformers.training.run_directory import RunDirectory
from revformers.training.trainer_run import finished_result, tokens_in_step


def test_a_step_counts_the_tokens_of_all_its_sequences(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True
    )
    assert tokens_in_step(arguments, 32) == 8 * 32


def test_only_a_run_with_the_figures_of_its_last_step_is_finished(tmp_path):
    run, checkpoint = RunDirectory(tmp_path), tmp_path / "checkpoint-4"
    assert finished_result(run, checkpoint) is None
    run.metrics.write_text('{"steps": 4}')
    assert finished_result(run, checkpoint) is None  # the model is gone
    run.model.mkdir()
    assert finished_result(run, tmp_path / "checkpoint-5") is None  # a finished run that was extended, and then died
    assert finished_result(run, checkpoint).metrics == {"steps": 4}


@pytest.mark.parametrize("content", ["", '{"steps": 4', "[4]", "4", "null", "{}", '{"steps": 3}'])
def test_a_run_whose_figures_are_damaged_is_not_finished(tmp_path, content):
    run = RunDirectory(tmp_path)
    run.model.mkdir()
    run.metrics.write_text(content)
    assert finished_result(run, tmp_path / "checkpoint-4") is None
