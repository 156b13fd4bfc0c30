"""transformers' models: what is saved is the network that runs."""

import json

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

import revformers as rf
from revformers.models.parts import require_reversible
from tests.tiny_trainers import DYNAMICS, IDS, small


def classifier():
    torch.manual_seed(0)
    config = small().config
    config.num_labels, config.pad_token_id = 1, 0
    return LlamaForSequenceClassification(config)


def test_a_reversible_decoder_in_an_ordinary_model_is_not_saved_as_the_ordinary_network(tmp_path):
    model = classifier()
    model.model = rf.make_reversible(small(), DYNAMICS).model
    with pytest.raises(ValueError, match=r"decoder .* is reversible.* Call revformers\.make_reversible"):
        model.save_pretrained(tmp_path)
    rf.make_reversible(model, DYNAMICS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("states", ["auto:14", "int32", "int64"])
def test_states_are_saved_with_the_model(states, tmp_path):
    model = rf.make_reversible(small(), DYNAMICS, states=states)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["revformers"]["states"] == states
    assert f"States: {states}: " in (tmp_path / "README.md").read_text()
    loaded = rf.from_pretrained(tmp_path)
    assert str(require_reversible(loaded).states) == states
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)


def test_an_ordinary_decoder_in_a_reversible_model_is_not_saved_as_a_reversible_network(tmp_path):
    model = rf.make_reversible(classifier(), DYNAMICS)
    model.model = small().model
    with pytest.raises(ValueError, match=r"decoder .* is ordinary.* Call revformers\.make_reversible"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    rf.make_reversible(model, rf.Midpoint()).save_pretrained(tmp_path)
    assert rf.describe(rf.from_pretrained(tmp_path)).recurrence == rf.Midpoint().recurrence


class OwnModel(PreTrainedModel):
    """A user's model around a reversible one, which it makes in its own __init__."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.inner = rf.make_reversible(LlamaForCausalLM(config), DYNAMICS)
        self.post_init()

    def forward(self, input_ids):
        return self.inner(input_ids)


def test_a_class_that_makes_its_own_decoder_reversible_is_saved_with_a_warning(tmp_path):
    model = OwnModel(small().config)
    with pytest.warns(UserWarning, match="only if the __init__ of OwnModel makes it so"):
        model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(OwnModel.from_pretrained(tmp_path).eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_policy_that_is_not_registered_is_told_when_the_model_is_saved(adapter, tmp_path):
    policy = type("Own", (rf.Store,), {"name": "own"})
    model = rf.make_reversible(small(), DYNAMICS, policy())
    if adapter:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match=r"Own is not registered") as told:
        model.save_pretrained(tmp_path)
    assert [warning.filename for warning in told if "registered" in str(warning.message)] == [__file__]
    with pytest.raises(OSError, match="There is no activation policy 'own'"):
        rf.load_adapter(tmp_path, small()) if adapter else rf.from_pretrained(tmp_path)
