from types import SimpleNamespace

import pytest
import torch
from torch import nn

from revformers.models.hidden import InseparableHeadError, LastHiddenState, own_forward, replaced_forward
from tests.tiny_models import batch, tiny


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "gpt2"])
def test_the_head_of_the_last_hidden_state_gives_the_logits_of_any_tokens(family):
    """Scaled and capped logits among them."""
    model = tiny(family).eval()
    inputs = {"input_ids": batch(model)["input_ids"]}
    with torch.no_grad():
        expected = model(**inputs).logits
        recorded = LastHiddenState(model)
        with recorded.recorded():
            own_forward(model, inputs)
        assert recorded.value.shape == (*inputs["input_ids"].shape, model.config.hidden_size)
        found = recorded.head(recorded.value[0, 2:5])
    torch.testing.assert_close(found, expected[0, 2:5], rtol=1e-5, atol=1e-5)


def test_the_first_run_counts_and_the_decoder_is_left_as_it_was():
    model = tiny("llama").eval()
    ids = batch(model)["input_ids"]
    recorded = LastHiddenState(model)
    with torch.no_grad(), recorded.recorded():
        first = model.model(input_ids=ids).last_hidden_state
        model.model(input_ids=ids.flip(1))
    assert recorded.value is first
    assert "forward" not in vars(model.model)


def test_a_decoder_that_did_not_run_has_no_last_hidden_state():
    recorded = LastHiddenState(tiny("llama"))
    with pytest.raises(InseparableHeadError, match="The head of LlamaForCausalLM cannot be applied to a few tokens"):
        _ = recorded.value


def test_a_head_that_reads_more_of_the_decoder_is_refused(monkeypatch):
    model = tiny("llama").eval()
    recorded = LastHiddenState(model)
    with recorded.recorded():
        own_forward(model, {"input_ids": batch(model)["input_ids"]})
    monkeypatch.setattr(type(model), "forward", lambda self, **_: SimpleNamespace())
    with pytest.raises(InseparableHeadError):
        recorded.head(recorded.value[0])


@pytest.mark.parametrize("replaced_before", [False, True])
def test_a_forward_is_replaced_for_the_block_alone(replaced_before):
    module = nn.Linear(1, 1)
    if replaced_before:
        module.forward = lambda hidden: "before"
    before = vars(module).get("forward")
    with replaced_forward(module, lambda hidden: "inside"):
        assert module(torch.ones(1)) == "inside"
    assert vars(module).get("forward") is before
