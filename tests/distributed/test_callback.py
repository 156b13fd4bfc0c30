"""The callback in a Trainer of two processes."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainingArguments

import revformers as rf
from tests.distributed.comparing import whole
from tests.distributed.test_launchers import environment_of, on_two_gpus
from tests.tiny_models import tiny

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]


def trained(rank, name, accumulation, folder, with_callback):
    """The weights after two steps, the report, and the peak of the first batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        for variable, value in environment_of(name).items():
            patch.setenv(variable, value)
        patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        if name != "ddp":
            on_two_gpus(patch)
        AcceleratorState._reset_state(True)
        torch.manual_seed(0)
        tokens = torch.randint(10, 100, (16, 16))
        callback = rf.ReversibleCallback()
        trainer = Trainer(
            rf.make_reversible(tiny("llama"), rf.BlendedMidpoint("1/4")),
            TrainingArguments(
                folder,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=accumulation,
                max_steps=2,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0,
                save_strategy="no",
                report_to="none",
                use_cpu=name == "ddp",
            ),
            train_dataset=[{"input_ids": one, "labels": one} for one in tokens],
            callbacks=[callback] if with_callback else [],
        )
        trainer.train()
        AcceleratorState._reset_state(True)
        weights = {name: whole(one) for name, one in trainer.model.named_parameters()}
        return weights, callback.report, callback.memory


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_training_is_verified_and_is_what_it_is_without_the_callback(pair, tmp_path, name, accumulation):
    with_it, without = (pair.run(trained, name, accumulation, str(tmp_path), one) for one in (True, False))
    for (weights, report, memory), (expected, *_) in zip(with_it, without, strict=True):
        assert report.bit_exact
        assert report.kernels == "as set"
        assert memory.total > 0
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
