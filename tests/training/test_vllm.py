import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.import_utils import is_vllm_available

import revformers as rf
from tests.lab.evaluation.tiny import tiny_model, tiny_tokenizer

TRAINERS = pytest.mark.parametrize(("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])


def ordinary(directory):
    tiny_model().save_pretrained(directory)
    return LlamaForCausalLM.from_pretrained(directory)


def make(trainer, config, model, directory):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    options = {"use_vllm": True, "num_generations": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    return trainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(str(directory), report_to="none", bf16=False, **options),
        train_dataset=Dataset.from_dict({"prompt": ["the cage"] * 4}),
        processing_class=tokenizer,
    )


@TRAINERS
def test_vllm_does_not_generate_for_a_reversible_model(trainer, config, tmp_path):
    with pytest.raises(ValueError, match="vLLM's own, ordinary network"):
        make(trainer, config, rf.make_reversible(ordinary(tmp_path / "ordinary"), rf.BlendedMidpoint("1/16")), tmp_path)


@pytest.mark.skipif(is_vllm_available(), reason="would start vLLM")
@TRAINERS
def test_an_ordinary_model_is_left_to_trl(trainer, config, tmp_path):
    with pytest.raises(ImportError, match="vLLM"):
        make(trainer, config, ordinary(tmp_path / "ordinary"), tmp_path)
