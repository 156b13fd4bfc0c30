"""What `lab.private_api` relies on, in the libraries that are installed: one test for each use."""

import inspect
import logging

import pytest
import torch
import transformers
from transformers.integrations import moe

from lab import private_api
from lab.tiny import tiny_options
from tests.tiny_models import batch, tiny


def test_the_profiler_tells_what_the_allocator_gave_and_took_back():
    kept = []

    def function():
        kept.append(torch.empty(2**20, dtype=torch.uint8))
        torch.empty(2**21, dtype=torch.uint8)

    assert private_api.cpu_allocations(function) == [2**20, 2**21, -(2**21)]


def test_models_are_made_from_configurations_in_their_dtype():
    config = transformers.LlamaConfig(**tiny_options(transformers.LlamaConfig), dtype=torch.bfloat16)
    model = private_api.model_from_config(transformers.LlamaForCausalLM, config)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.dtype == torch.bfloat16
    private_api.set_attention(model, "eager")
    assert model.model.config._attn_implementation == "eager"


def test_experts_run_in_turn(monkeypatch):
    model, chosen = tiny("mixtral"), []
    get = moe.ExpertsInterface.get_interface
    monkeypatch.setattr(
        moe.ExpertsInterface,
        "get_interface",
        lambda self, name, default: chosen.append(get(self, name, default) is default) or get(self, name, default),
    )
    model(**batch(model))
    assert not any(chosen)
    chosen.clear()
    private_api.run_experts_in_turn(model)
    model(**batch(model))
    assert chosen == [True] * 4


def test_every_request_that_is_scored_goes_through_one_method_with_its_tokens():
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    method = huggingface.HFLM._loglikelihood_tokens
    assert list(inspect.signature(method).parameters)[:4] == ["self", "requests", "disable_tqdm", "override_bs"]
    for name in ("loglikelihood", "loglikelihood_rolling"):
        written = [inspect.getsource(vars(kind)[name]) for kind in huggingface.HFLM.__mro__ if name in vars(kind)]
        assert any("self._loglikelihood_tokens(" in source for source in written)


def test_the_harness_is_quiet_about_itself(caplog):
    task = pytest.importorskip("lm_eval.api.task")
    before = task.tqdm
    with private_api.quiet_harness(), caplog.at_level(logging.DEBUG):
        task.eval_logger.warning(f"{private_api.NOISE[0]} ...")
        task.eval_logger.warning("what a user must know")
        assert task.tqdm([1, 2]).disable
    assert task.tqdm is before
    assert caplog.messages == ["what a user must know"]


def test_the_harness_still_says_what_is_kept_out():
    """A warning in other words would be printed, once for every request."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval import tasks
    from lm_eval.models import utils

    source = "".join(map(inspect.getsource, (huggingface, utils, tasks)))
    source += inspect.getsource(pytest.importorskip("lm_eval.api.task"))
    missing = [noise for noise in private_api.NOISE if noise not in source]
    assert not missing


def test_the_harness_knows_how_much_a_task_lets_a_model_write():
    pytest.importorskip("lm_eval")
    assert private_api.tokens_to_write({"until": ["\n"], "max_gen_toks": 7}, 256) == 7
    assert private_api.tokens_to_write({"until": ["\n"]}, 256) == 256
