import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import revformers as rf
from tests.test_reversible import llama


@pytest.fixture
def model():
    return llama()


@pytest.fixture
def batch():
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("change", ["append", "replace", "remove"])
def test_a_list_of_layers_that_has_changed_is_refused(model, batch, change):
    plain = copy.deepcopy(model.model.layers[0])
    rf.make_reversible(model, rf.Midpoint())
    if change == "append":
        model.model.layers.append(plain)
    elif change == "replace":
        model.model.layers[2] = plain
    else:
        del model.model.layers[2]
    with pytest.raises(rf.NotReversibleError, match="The layers of LlamaModel are not the 4 that were made reversible"):
        model(**batch)


def test_a_stage_of_a_pipeline_is_refused(model, batch):
    cut = copy.deepcopy(model)
    del cut.model.layers[2:]
    with pytest.raises(rf.NotReversibleError, match="a stage of a pipeline"):
        rf.make_reversible(cut, rf.Midpoint())
    rf.make_reversible(model, rf.Midpoint())
    with pytest.raises(RuntimeError, match="outside its decoder's forward, as a stage of a pipeline calls it"):
        model.model.layers[0](torch.zeros(1, 4, model.config.hidden_size))
    for number in (2, 3):
        model.model.layers[number] = torch.nn.Identity()
    with pytest.raises(rf.NotReversibleError, match=r"Stages of a pipeline .* cannot be reversible"):
        model(**batch)


@pytest.mark.parametrize("activations", ["store", "rebuild", "checkpoint"])
def test_checkpointing_around_the_layers_is_right_or_refused(model, batch, activations):
    rf.make_reversible(model, rf.Midpoint(), activations)
    model(**batch).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for number, layer in enumerate(model.model.layers):  # as accelerate does for fsdp_activation_checkpointing
        model.model.layers[number] = checkpoint_wrapper(layer)
    loss = model(**batch).loss
    if activations == "store":
        with pytest.raises(RuntimeError, match=r"(?s)Activation checkpointing around the layers.*switch it off"):
            loss.backward()
    else:
        loss.backward()
        assert all(map(torch.equal, expected, (parameter.grad for parameter in model.parameters())))


def test_a_cache_under_gradients_is_switched_off_and_said_so(model, batch):
    rf.make_reversible(model, rf.Midpoint())
    with pytest.warns(UserWarning, match="use_cache=True is set to False"):
        assert model(**batch, use_cache=True).past_key_values is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(**batch).past_key_values is None
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="key-value cache"):
        model(**batch, past_key_values=cache)


@pytest.mark.parametrize("activations", ["store", "rebuild"])
def test_only_a_cache_that_is_asked_for_is_filled_under_gradients(model, batch, activations):
    rf.make_reversible(model, rf.Midpoint(), activations)
    assert model.config.use_cache
    with torch.no_grad():
        assert model(**batch).past_key_values is not None
    assert model(**batch).past_key_values is None
    if activations == "store":
        cache = model(**batch, use_cache=True).past_key_values
        assert cache is not None
        assert model(**batch, past_key_values=cache).loss.requires_grad


def test_a_failed_forward_pass_leaves_the_model_usable(model, batch):
    rf.make_reversible(model, rf.Midpoint())

    def fail(*_):
        raise KeyError("in the middle")

    handle = model.model.layers[2].mlp.register_forward_hook(fail)
    with pytest.raises(KeyError):
        model(**batch)
    handle.remove()
    assert rf.verify_gradients(model, batch).bit_exact


def change_between(layers):
    class Scaled(type(layers[1])):
        def __call__(self, hidden, *arguments, **keywords):
            return super().__call__(hidden * 1.0, *arguments, **keywords)

    layers[1].__class__ = Scaled


def change_in_place(layers):
    class Scaled(type(layers[1])):
        def __call__(self, hidden, *arguments, **keywords):
            return super().__call__(hidden.mul_(2.0), *arguments, **keywords)

    layers[1].__class__ = Scaled


def swap(layers):
    layers[1], layers[2] = layers[2], layers[1]


def share(layers):
    layers[1] = layers[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_between, "changes the hidden state between layers 0 and 1"),
        (change_in_place, "changes the hidden state between layers 0 and 1"),
        (swap, "are not the 4 that were made reversible"),
        (share, "are not the 4 that were made reversible"),
    ],
)
def test_a_decoder_that_is_no_plain_fold_is_refused_in_its_forward_pass(model, batch, change, message):
    rf.make_reversible(model, rf.Midpoint())
    change(model.model.layers)
    with torch.no_grad(), pytest.raises(rf.NotReversibleError, match=message):
        model(**batch)


def test_replicated_layers_are_refused_until_the_model_is_made_reversible_again(batch):
    def replicated(model):
        config = LoraConfig(
            r=2, layer_replication=[[0, 3], [1, 4]], target_modules=["up_proj"], init_lora_weights=False
        )
        torch.manual_seed(1)
        return get_peft_model(model, config)

    dynamics = rf.Midpoint()
    model = rf.make_reversible(replicated(llama()), dynamics)
    report = rf.verify_gradients(model, batch)
    assert report.bit_exact
    assert report.parameters == 2 * 6
    late = replicated(rf.make_reversible(llama(), dynamics))
    with pytest.raises(rf.NotReversibleError, match=r"before revformers\.make_reversible"):
        late(**batch)
    assert torch.equal(rf.make_reversible(late, dynamics)(**batch).logits, model(**batch).logits)


def test_a_layer_called_on_its_own_is_refused(model):
    rf.make_reversible(model, rf.Midpoint())
    with pytest.raises(RuntimeError, match="outside its decoder's forward"):
        model.model.layers[0](torch.randn(1, 2, 32))


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        (lambda self, steps_per_layer: None, "Own.bind returns None; it must return a function that begins"),
        (lambda self, steps_per_layer: lambda states, steps: "pass", "must begin a ForwardPass, but returns 'pass'"),
    ],
)
def test_a_policy_that_begins_no_pass_is_named(model, batch, bind, message):
    rf.make_reversible(model, rf.Midpoint(), type("Own", (rf.Store,), {"name": "own", "bind": bind})())
    with pytest.raises(TypeError, match=message):
        model(**batch)
