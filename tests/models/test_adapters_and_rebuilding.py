"""Adapters that change between the forward and the backward pass, and those that PEFT sets for one forward pass."""

import contextlib

import pytest
import torch
from peft import LoraConfig, RoadConfig, get_peft_model

import revformers as rf
from revformers.models import forward
from tests.tiny_models import batch, tiny

DYNAMICS = rf.BlendedMidpoint("1/4")
POLICIES = ["rebuild", "budget:checkpoint", "budget:rebuild"]


def adapted(activations="rebuild", names=("default",), dtype=torch.float32, **options):
    """A tiny Llama with fresh adapters, whose B is zero."""
    model = rf.make_reversible(tiny("llama"), DYNAMICS, "rebuild")
    config = LoraConfig(
        **(
            {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
            | options
        )
    )
    torch.manual_seed(0)
    model = get_peft_model(model, config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    set_policy(model, activations)
    return model.train()


def set_policy(model, activations):
    if activations.startswith("budget:"):
        recompute = activations.removeprefix("budget:")
        smallest = rf.smallest_budget(model, *batch(model)["input_ids"].shape, recompute)
        activations = rf.Budget(int(1.3 * smallest), recompute)
    rf.set_activations(model, activations)


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def scale_first_matrices(model, layers=("0", "1")):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name and name.split("layers.")[1][0] in layers:
                parameter.mul_(3)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("activations", POLICIES)
@pytest.mark.parametrize("layers", ["0", "1"])
def test_a_weight_that_no_output_depends_on_must_not_change(activations, autocast, layers):
    model = adapted(activations)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch(model)).loss
    scale_first_matrices(model, layers)
    with pytest.raises(rf.RebuildMismatchError, match=rf"[Ll]ayer {layers} .*lora_A\S* \[.*\] was changed") as caught:
        loss.backward()
    assert "checkpoint" not in str(caught.value)


def test_the_remedy_refuses_or_is_right():
    model = adapted("store")
    loss = model(**batch(model)).loss
    scale_first_matrices(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.thorough
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("activations", POLICIES)
@pytest.mark.parametrize("layers", [None, [0]], ids=["all layers", "first layer"])
def test_the_losses_of_two_adapters_are_refused_in_one_backward_pass_and_the_remedies_work(
    activations, autocast, layers
):
    model = adapted(activations, ("a", "b"), layers_to_transform=layers)

    def losses():
        for name in ("a", "b"):
            model.set_adapter(name)
            for weight_name, weight in model.named_parameters():  # PEFT has frozen the other adapter
                weight.requires_grad_("lora_" in weight_name)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                yield model(**batch(model)).loss

    first, second = losses()
    with pytest.raises(
        rf.RebuildMismatchError, match=r"[Ll]ayer \d.*the active adapter was changed from \('a',\) to \('b',\)"
    ) as caught:
        (first + second).backward()
    assert "set_activations(model, revformers.Store())" in str(caught.value)
    assert "checkpoint" not in str(caught.value)
    model.zero_grad()

    one_by_one = {}
    for loss in losses():
        loss.backward()
        one_by_one |= gradients(model)
    set_policy(model, "store")
    first, second = losses()
    (first + second).backward()
    stored = gradients(model)
    assert stored.keys() == one_by_one.keys()
    assert all(torch.equal(one_by_one[name], stored[name]) for name in stored)


@pytest.mark.parametrize("activations", POLICIES)
def test_a_retained_graph_is_refused_after_an_optimizer_step(activations):
    model = adapted(activations)
    optimizer = torch.optim.SGD([one for name, one in model.named_parameters() if "lora_A" in name], lr=1.0)
    loss = model(**batch(model)).loss
    loss.backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises((rf.RebuildMismatchError, RuntimeError), match=r"of layer \d was changed|modified in place"):
        loss.backward()


def test_a_retained_graph_of_one_layer_is_refused_too():
    """Its tensors are still at hand from the first backward pass, so nothing is rebuilt in the second."""
    model = rf.make_reversible(tiny("llama", num_hidden_layers=1), rf.Midpoint())
    loss = model(**batch(model)).loss
    loss.backward(retain_graph=True)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_a_partial_backward_pass_checks_what_it_rebuilds():
    model = adapted()
    loss = model(**batch(model)).loss
    scale_first_matrices(model, "1")
    wanted = [one for name, one in model.named_parameters() if "layers.1.mlp.up_proj.lora_B" in name]
    with pytest.raises(rf.RebuildMismatchError, match="of layer 1 was changed"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("activations", POLICIES)
def test_weights_that_are_given_other_memory_are_refused(activations):
    model = adapted(activations)
    loss = model(**batch(model)).loss
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data = parameter.data * 3
    with pytest.raises(rf.RebuildMismatchError, match=r"of layer \d was changed.*lora_A\S* \[.*\] was changed"):
        loss.backward()


@pytest.mark.parametrize("activations", POLICIES)
def test_weights_that_are_replaced_are_refused(activations):
    model = adapted(activations)
    loss = model(**batch(model)).loss
    for module in model.modules():
        for matrices in [module.lora_A] if hasattr(module, "lora_A") else []:
            for matrix in matrices.values():
                matrix.weight = torch.nn.Parameter(matrix.weight.detach() * 3)
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer \d .*lora_A\S* \[.*\] was replaced"):
        loss.backward()


@pytest.mark.parametrize("activations", POLICIES)
def test_weights_that_are_replaced_by_tensors_that_are_no_parameters_are_refused(activations):
    """As functional calls do."""
    model = adapted(activations)
    loss = model(**batch(model)).loss
    for name, module in model.named_modules():
        if ".2." in name and name.endswith(".lora_A.default"):
            weight = module.weight.detach() * 3
            del module.weight
            module.weight = weight.requires_grad_()
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer 2 .*lora_A.default.weight \[.*\] was removed"):
        loss.backward()


def bring_weights(model, trained, until="evaluation", factor=1.0):
    """Let the base of layer 1's up-projection be a new parameter in every evaluation, as offloading does.

    It is taken away when the evaluation, or when the forward pass of the model, is over.
    """
    base = next(one for name, one in model.named_modules() if name.endswith("layers.1.mlp.up_proj")).base_layer
    kept = factor * (base.weight if base.weight is not None else base.kept).detach()
    base.kept = kept
    evaluations = []

    def bring(module, arguments):
        module.weight = torch.nn.Parameter(kept.clone(), requires_grad=trained)
        evaluations.append(module.weight.data_ptr())

    def take_away(module, arguments, output):
        base.weight = None

    base.register_forward_pre_hook(bring)
    (base if until == "evaluation" else model).register_forward_hook(take_away)
    return evaluations


@pytest.mark.parametrize("until", ["evaluation", "forward pass"])
@pytest.mark.parametrize("activations", POLICIES)
def test_frozen_weights_may_be_brought_for_every_evaluation_anew(activations, until):
    model = adapted(activations)
    inputs = batch(model)
    rf.set_activations(model, "store")
    model(**inputs).loss.backward()
    expected = gradients(model)
    set_policy(model, activations)
    evaluations = bring_weights(model, trained=False, until=until)
    model(**inputs).loss.backward()
    assert len(evaluations) == 2, "the layer was evaluated again"
    again = gradients(model)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_weights_that_train_are_compared_by_their_bits_where_they_are_brought_anew(factor):
    """Their gradient goes to the tensor that the forward pass used, as with stored activations."""
    model = adapted()
    evaluations = bring_weights(model, trained=True)
    loss = model(**batch(model)).loss
    bring_weights(model, trained=True, factor=factor)
    if factor == 1:
        loss.backward()
        assert len(evaluations) == 2
    else:
        with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer 1 "):
            loss.backward()


@pytest.mark.thorough
@pytest.mark.parametrize("activations", POLICIES)
@pytest.mark.parametrize("change", ["disable", "merge", "freeze", "delete"])
def test_an_adapter_that_changes_before_the_backward_pass_is_refused(activations, change):
    model = adapted(activations, ("default", "other"), modules_to_save=["embed_tokens"])
    inputs = batch(model)
    with model.disable_adapter() if change == "disable" else contextlib.nullcontext():
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        loss = model(inputs_embeds=embedded, labels=inputs["labels"]).loss
    if change == "merge":
        model.merge_adapter()
    elif change == "freeze":
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    elif change == "delete":
        model.set_adapter("other")
        model.delete_adapter("default")
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer \d") as caught:
        loss.backward()
    words = {
        "disable": "adapters were enabled",
        "merge": "adapters were merged",
        "freeze": "lora_A.default.weight [2, 64] was frozen",
        "delete": "the active adapter was changed from ('default',) to ('other',); ",
    }
    for word in (words[change], "Call backward before such a change, or undo it and repeat the forward pass"):
        assert word in str(caught.value), str(caught.value)
    assert "checkpoint" not in str(caught.value)


@pytest.mark.parametrize("activations", POLICIES)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_weights_that_a_pass_does_not_use_may_change(activations, autocast):
    """One adapter is stepped between the forward and the backward pass of another."""
    model = adapted(activations, ("a", "b"))

    def run():
        model.set_adapter("a")
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch(model)).loss
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".b." in name:
                    parameter.add_(1)
        loss.backward()
        return gradients(model)

    found = run()
    set_policy(model, "store")
    stored = run()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.parametrize("activations", POLICIES)
def test_what_a_layer_is_given_may_come_from_weights_outside_of_it(activations):
    """Position embeddings with a graph of their own: what that is made of is not held against the layer."""
    model = rf.make_reversible(tiny("llama", attention_bias=True), DYNAMICS)
    scale = torch.nn.Parameter(torch.zeros(1))
    model.model.rotary_emb.register_forward_hook(lambda *called: tuple(part * scale.exp().exp() for part in called[2]))
    found = []
    for policy in (activations, "store"):
        set_policy(model, policy)
        model(**batch(model)).loss.backward()
        found.append(gradients(model) | {"scale": scale.grad})
        scale.grad = None
    assert found[0]["scale"] != 0
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def of_one_batch(model, **options):
    """Gradients of a batch for which PEFT sets hooks on its modules while the forward pass runs, and the logits."""
    output = model(**batch(model), **options)
    assert not any(module._forward_pre_hooks for module in model.modules())
    output.loss.backward()
    assert not any(module._forward_pre_hooks for module in model.modules())
    return gradients(model), output.logits


@pytest.mark.thorough
@pytest.mark.parametrize(
    "dynamics", [DYNAMICS, rf.TwoEvaluationMidpoint("1/2"), rf.Hamiltonian()], ids=lambda d: d.name
)
@pytest.mark.parametrize("activations", [*POLICIES, "checkpoint"])
def test_activated_lora_is_rebuilt_to_the_bit(activations, dynamics):
    """The adapter acts from its invocation tokens on, in every row from another place."""
    model = adapted()
    start = int(batch(model)["input_ids"][0, 5])
    model = adapted(activations, alora_invocation_tokens=[start], init_lora_weights=False)
    rf.make_reversible(model, dynamics)
    set_policy(model, activations)
    found, logits = of_one_batch(model)
    set_policy(model, "store")
    stored, expected = of_one_batch(model)
    assert stored
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    assert torch.equal(logits, expected)
    with model.disable_adapter():
        assert not torch.equal(of_one_batch_without_gradients(model), expected)


def of_one_batch_without_gradients(model):
    with torch.no_grad():
        return model(**batch(model)).logits


@pytest.mark.parametrize("activations", [*POLICIES, "checkpoint"])
def test_an_adapter_for_each_row_is_rebuilt_to_the_bit(activations):
    model = adapted(activations, ("a", "b"), init_lora_weights=False).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    rows = len(batch(model)["input_ids"])
    names = (["a", "b", "__base__"] * rows)[:rows]
    found, _ = of_one_batch(model, adapter_names=names)
    set_policy(model, "store")
    stored, _ = of_one_batch(model, adapter_names=names)
    other, _ = of_one_batch(model, adapter_names=names[::-1])
    assert {name.split(".")[-2] for name in stored} == {"a", "b"}
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    assert not all(torch.equal(other[name], stored[name]) for name in other)


def test_an_adapter_for_each_row_beside_trained_tokens_is_rebuilt_to_the_bit():
    """PEFT gives hooks to the LoRA layers, and none to the embeddings."""
    model = adapted("rebuild", ("a", "b"), init_lora_weights=False, trainable_token_indices=[1, 2]).eval()
    names = (["a", "b"] * len(batch(model)["input_ids"]))[: len(batch(model)["input_ids"])]
    found, _ = of_one_batch(model, adapter_names=names)
    set_policy(model, "store")
    stored, _ = of_one_batch(model, adapter_names=names)
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.parametrize("activations", POLICIES)
def test_rotations_for_each_row_are_rebuilt_to_the_bit(activations):
    """RoAd takes adapter_names too, and is no LoRA."""
    config = RoadConfig(target_modules=["q_proj", "down_proj"], group_size=4, init_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(rf.make_reversible(tiny("llama"), DYNAMICS), config, "a")
    model.add_adapter("b", config)
    model.eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_("road_" in name)
    set_policy(model, activations)
    names = (["a", "b"] * len(batch(model)["input_ids"]))[: len(batch(model)["input_ids"])]
    found, _ = of_one_batch(model, adapter_names=names)
    set_policy(model, "store")
    stored, _ = of_one_batch(model, adapter_names=names)
    assert {name.split(".")[-1] for name in stored} == {"a", "b"}
    assert all(torch.equal(found[name], stored[name]) for name in stored)


def test_without_the_hooks_of_the_batch_activated_lora_is_noticed(monkeypatch):
    monkeypatch.setattr(forward, "has_batch_hooks", lambda _: False)
    with pytest.raises(rf.RebuildMismatchError, match=r"[Ll]ayer \d"):
        test_activated_lora_is_rebuilt_to_the_bit("rebuild", DYNAMICS)
