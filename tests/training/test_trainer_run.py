from transformers import TrainingArguments

from revformers.training.run_directory import RunDirectory
from revformers.training.trainer_run import finished_result, tokens_in_step


def test_a_step_counts_the_tokens_of_all_its_sequences(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True
    )
    assert tokens_in_step(arguments, 32) == 8 * 32


def test_only_a_run_with_its_figures_and_all_its_steps_is_finished(tmp_path):
    run, checkpoint = RunDirectory(tmp_path), tmp_path / "checkpoint-4"
    assert finished_result(run, checkpoint, 4) is None
    run.metrics.write_text('{"steps": 4}')
    assert finished_result(run, checkpoint, 5) is None
    assert finished_result(run, checkpoint, 4).metrics == {"steps": 4}
