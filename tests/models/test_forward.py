import contextlib
import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import revformers as rf
from revformers.engine.fixed_point import INT64, FixedPoint
from revformers.engine.range_check import RangeCheck
from revformers.engine.range_watch import MOST_WAITING
from revformers.models import forward
from tests.test_reversible import llama
from tests.tiny_models import tiny


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


class StopForwardError(Exception):
    pass


@pytest.mark.parametrize("states", ["int32", "int64"])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_pass_that_a_hook_ends_early_has_no_wrapped_states(model, batch, states, gradients, at_once, monkeypatch):
    """The hook of a layer keeps its output, of which a loss is made. On a GPU the range is not looked at at once."""
    model = rf.make_reversible(model.bfloat16(), rf.Midpoint(), states=states)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight *= 60000 / weight.abs().max()
    if not at_once:
        monkeypatch.setattr(forward, "_checks_range_at_once", lambda *_: False)
    kept = []

    def keep(_, arguments, output):
        kept.append(output)
        raise StopForwardError

    model.model.layers[1].register_forward_hook(keep)

    def features():
        with torch.set_grad_enabled(gradients):
            with contextlib.suppress(StopForwardError):
                model(**batch)
            if gradients:
                kept[0].float().square().mean().backward()

    if states == "int32":
        with pytest.raises(rf.StateRangeError, match="embedding has magnitude"):
            features()
    else:
        features()
        assert kept[0].abs().max() > 2**15


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("error", "of_device"),
    [(torch.OutOfMemoryError("device"), True), (torch.AcceleratorError("device", 1), True), (KeyError("hook"), False)],
)
def test_an_error_of_the_device_is_not_hidden_by_the_range(model, batch, error, of_device, at_once, monkeypatch):
    """The control is an error of a hook. No later pass raises for the range of this one."""
    model = rf.make_reversible(model, rf.Midpoint(), states="int32")
    model.get_input_embeddings().weight.data.mul_(1e9)
    if not at_once:
        monkeypatch.setattr(forward, "_checks_range_at_once", lambda *_: False)

    def fail(*_):
        raise error

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(type(error) if of_device else rf.StateRangeError) as raised:
        model(**batch)
    assert error in (raised.value, raised.value.__context__)
    handle.remove()
    model.get_input_embeddings().weight.data.mul_(1e-9)
    for _ in range(MOST_WAITING + 1):
        model(**batch)


def test_a_plain_runtime_error_is_of_the_device_if_there_is_one():
    error = RuntimeError("CUDA error: device-side assert triggered")
    assert forward._may_be_of_device(error, torch.device("cuda", 0))
    assert not forward._may_be_of_device(error, torch.device("cpu"))
    assert not forward._may_be_of_device(StopForwardError(), torch.device("cuda", 0))


def test_a_device_that_cannot_say_the_range_does_not_hide_the_error_of_the_pass(model, batch, monkeypatch):
    model = rf.make_reversible(model, rf.Midpoint())

    def fail(*_):
        monkeypatch.setattr(RangeCheck, "within", lambda _: torch.empty((), device="meta"))
        raise StopForwardError

    model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(StopForwardError):
        model(**batch)


def test_a_head_that_is_stepped_in_the_backward_pass_is_not_stepped_before_the_range_is_known(batch):
    """Only the head has hooks here; its gradients come first."""
    model = rf.make_reversible(tiny("llama"), rf.Midpoint()).to("meta")
    decoder, hidden = model.model, torch.empty(0, device="meta")
    stack = decoder._reversible_stack
    assert not forward._checks_range_at_once(stack, decoder, hidden)
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda _: None)
    assert forward._checks_range_at_once(stack, decoder, hidden)


def test_a_pass_in_another_thread_does_not_change_the_format_of_this_one(model, batch):
    """Each sets the stack's record of the last format; the other one's is what this one would read there."""
    rf.make_reversible(model, rf.Midpoint(), "store", states="int32")

    class Shared(forward.ReversibleStack):
        fixed_point = property(lambda _: INT64, lambda *_: None)

    stack, found = model.model._reversible_stack, []
    stack.__dict__.pop("fixed_point")
    stack.__class__ = Shared
    model.model.layers[0].register_forward_hook(lambda *_: found.append(forward.CURRENT_RUN.get().states.fixed_point))
    model(**batch)
    assert found == [FixedPoint(torch.int32, 16)]


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
