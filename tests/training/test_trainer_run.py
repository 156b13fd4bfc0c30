from transformers import TrainingArguments

from revformers.training.trainer_run import tokens_in_step


def test_a_step_counts_the_tokens_of_all_its_sequences(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True
    )
    assert tokens_in_step(arguments, 32) == 8 * 32
