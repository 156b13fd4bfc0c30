from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from revformers.models.batch_hooks import batch_hooks, has_batch_hooks, with_batch_hooks
from revformers.private_api import forward_pre_hooks
from tests.tiny_models import batch, tiny


def adapted():
    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model.eval()


def test_the_hooks_of_an_adapters_batch_are_found_while_its_pass_runs_and_no_others():
    model, found = adapted(), []
    model.base_model.model.model.layers[0].register_forward_pre_hook(lambda *_: None)
    assert not has_batch_hooks(model)
    model.base_model.model.model.layers[1].register_forward_hook(lambda *_: found.append(batch_hooks(model)))
    inputs = {"input_ids": batch(model)["input_ids"]}
    rows = ["__base__", "default"] * len(inputs["input_ids"])
    model(**inputs, adapter_names=rows[: len(inputs["input_ids"])])
    model(**inputs)
    assert len(found[0]) >= len(model.base_model.model.model.layers)
    assert found[1] == []


def test_hooks_are_in_place_in_every_evaluation_and_are_not_doubled():
    module = nn.Linear(2, 2)
    calls = []

    def hook(module, arguments, keywords, name):
        calls.append(name)

    hook = partial(hook, name="batch")
    field = with_batch_hooks(module, [(module, hook)])
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    field(torch.ones(2))
    handle.remove()
    field(torch.ones(2))
    assert calls == ["batch", "batch"]
    assert not forward_pre_hooks(module)
