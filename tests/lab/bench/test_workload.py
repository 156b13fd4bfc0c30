import pytest
import torch

from lab.bench.arm_names import ORDINARY_CHECKPOINT, ORDINARY_STORE, arm_name, setups_of
from lab.bench.workload import MeasuredWorkload, llama_config
from revformers import Midpoint, dynamics
from revformers.models.parts import reversible_stack
from revformers.setup import CHECKPOINT, STORE

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 8, "vocab_size": 11}


def workload(**changes):
    sizes = {"model_config": llama_config(2, 32, 13, 8), "batch_size": 3, "sequence_length": 8}
    return MeasuredWorkload(**sizes | changes)


def test_the_same_seed_gives_the_same_weights_and_batches():
    one, other = workload().build_model(), workload().build_model()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(workload().build_batch(4)["input_ids"], workload().build_batch(4)["input_ids"])
    assert not torch.equal(workload().build_batch(4)["input_ids"], workload().build_batch(5)["input_ids"])
    assert not torch.equal(workload(seed=1).build_batch()["input_ids"], workload().build_batch()["input_ids"])


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("bfloat16_autocast", 4)])
def test_the_layer_input_is_as_large_as_the_tensor_that_reaches_a_layer(precision, size):
    measured = workload(precision=precision)
    seen = []
    model = measured.build_model()
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    measured.forward_backward(model, measured.build_batch())
    assert seen[0].nbytes == measured.layer_input_bytes == 3 * 8 * 32 * size


@pytest.mark.parametrize("config", [llama_config(2, 32, 13, 8), GPT2])
def test_depth_and_width_have_one_name_in_every_family(config):
    deeper = workload(model_config=config).with_layers(5)
    assert deeper.layers == 5
    assert deeper.width == workload(model_config=config).width
    assert len(deeper.build_model().get_decoder().get_submodule("h" if config is GPT2 else "layers")) == 5


def test_arms_change_the_model_as_they_say():
    model = workload().build_model()
    for name, arm in setups_of(["store", "checkpoint", "offload", "rebuild"], Midpoint()).items():
        assert str(reversible_stack(arm.apply(model)).activations) == name == arm_name(arm)
    for name, arm in setups_of(["budget", "budget_checkpoint"], Midpoint(), budget=2**20).items():
        assert reversible_stack(arm.apply(model)).activations == arm.activations
        assert name == arm_name(arm)
    assert str(arm.activations) == "budget:1048576:checkpoint"
    assert reversible_stack(STORE.apply(model)) is None
    assert not model.is_gradient_checkpointing
    assert CHECKPOINT.apply(model).is_gradient_checkpointing


@pytest.mark.filterwarnings("error")
def test_ordinary_checkpointing_warns_of_nothing():
    CHECKPOINT.apply(workload().build_model())


@pytest.mark.parametrize(("head", "chunked"), [("auto", True), ("chunked", True), ("own", False)])
def test_every_arm_has_the_head_of_the_workload(head, chunked):
    measured = workload(head=head)
    losses = []
    for arm in setups_of([ORDINARY_STORE, ORDINARY_CHECKPOINT, "rebuild"], Midpoint()).values():
        output = arm.apply(measured.build_model())(**measured.build_batch())
        assert (output.logits is None) == chunked
        losses.append(float(output.loss))
    own = workload(head="own")
    expected = own.forward_backward(STORE.apply(own.build_model()), own.build_batch())
    assert losses[0] == pytest.approx(expected, rel=1e-6)


def test_all_arms_compute_the_same_loss():
    measured = workload()
    losses = {}
    names = [ORDINARY_STORE, ORDINARY_CHECKPOINT, "store", "checkpoint", "rebuild", "budget", "budget_checkpoint"]
    for name, arm in setups_of(names, dynamics.Midpoint(), budget=2**16).items():
        model, batch = arm.apply(measured.build_model()), measured.build_batch()
        model(**batch)  # a budget stores layers from the second pass of a batch shape on
        losses[name] = measured.forward_backward(model, batch)
    assert losses["store"] == losses["checkpoint"] == losses["rebuild"] == losses["budget"]
    assert losses["store"] == losses["budget_checkpoint"]
    assert losses[ORDINARY_STORE] == losses[ORDINARY_CHECKPOINT] != losses["store"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: workload(precision="float8"), "no precision 'float8'"),
        (lambda: workload(head="none"), "no head 'none'"),
        (lambda: workload(batch_size=0), "batch_size of at least 1"),
        (lambda: workload(model_config=llama_config(0, 32, 13, 8)), "layers of at least 1"),
        (lambda: workload(device="nonsense"), "cannot use the device 'nonsense'"),
        (lambda: workload(optimizer="sgd"), "Training full with sgd is not measured"),
        (lambda: workload(training="lora"), "Training lora with none is not measured"),
        (lambda: llama_config(2, 30, 13, 8, heads=4), "width of 30"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
