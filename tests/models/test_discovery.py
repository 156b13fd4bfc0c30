from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

import revformers as rf
from revformers.models.discovery import find_stack, unwrap
from tests.tiny_models import batch, tiny


def test_a_head_called_decoder_may_have_an_adapter():
    model = tiny("ModernBertDecoderForCausalLM")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["Wqkv", "decoder"], init_lora_weights=False))
    assert rf.verify_gradients(rf.make_reversible(model, rf.Midpoint()), batch(model)).bit_exact


def test_the_layers_are_found_in_the_decoder_also_inside_an_adapter():
    model = tiny("llama")
    stack = find_stack(model)
    assert stack.decoder is model.model
    assert stack.layers == list(model.model.layers)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert unwrap(adapted) is model
    assert find_stack(adapted).decoder is stack.decoder


class Model(nn.Module):
    """As a model of transformers, with a configuration and layers that are given."""

    def __init__(self, layers=2, **options):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(layers))
        config = SimpleNamespace(**options)
        config.get_text_config = lambda decoder: config
        self.config, self.base_model = config, self
        self.get_decoder = lambda: self


def test_layers_are_counted_by_either_name_of_the_depth():
    model = Model(num_hidden_layers=4, num_layers=2)
    assert find_stack(model).layers == list(model.layers)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(1, 1), "Linear is not a transformers model"),
        (Model(is_encoder_decoder=True), "encoder-decoder"),
        (Model(), "does not say how many layers"),
        (Model(num_hidden_layers=3), "No list of 3 layers was found"),
        (Model(num_hidden_layers=2, layerdrop=0.1), "at random .* set layerdrop to 0"),
        (Model(num_hidden_layers=2, decoder_layerdrop=0.1), "set decoder_layerdrop to 0"),
        (Model(num_hidden_layers=2, num_kv_shared_layers=1), "shares keys and values"),
        (Model(num_hidden_layers=2, n_layers_per_attn_res_block=1), "states of earlier layers"),
        (Model(num_hidden_layers=2, patcher_config={"a": 1}), "several stacks"),
        (Model(num_hidden_layers=2, H_cycles=2), "several times over"),
    ],
)
def test_what_is_no_plain_fold_is_refused(model, message):
    with pytest.raises(rf.NotReversibleError, match=message):
        find_stack(model)


def test_a_layer_that_is_used_twice_is_refused():
    model = Model(num_hidden_layers=2)
    model.layers[1] = model.layers[0]
    with pytest.raises(rf.NotReversibleError, match="more than once"):
        find_stack(model)
