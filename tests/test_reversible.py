import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import revformers as rf
from revformers.models.parts import reversible_stack


def llama(layers=4, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        **options,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def model():
    return llama()


@pytest.fixture
def batch():
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def test_names_and_weights_do_not_change(model, batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    ordinary = model(**batch).logits
    assert rf.make_reversible(model, rf.Midpoint()) is model
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.allclose(model(**batch).logits, ordinary)
    assert rf.make_residual(model) is model
    assert torch.equal(model(**batch).logits, ordinary)


def test_residual_dynamics_is_the_ordinary_network(model, batch):
    ordinary = model(**batch).logits
    rf.make_reversible(model, rf.Residual(), activations="store")
    assert torch.allclose(model(**batch).logits, ordinary, atol=1e-5)


def test_calling_again_replaces_the_dynamics(model, batch):
    rf.make_reversible(rf.make_reversible(model, rf.Midpoint()), rf.Leapfrog(), "checkpoint")
    again = model(**batch).logits
    assert torch.equal(again, rf.make_reversible(llama(), rf.Leapfrog())(**batch).logits)
    assert reversible_stack(model).activations == rf.Checkpoint()


def test_a_copy_is_a_model_of_its_own(model, batch):
    rf.make_reversible(model, rf.Midpoint())
    twin = copy.deepcopy(model)
    rf.make_residual(model)
    assert reversible_stack(model) is None
    assert rf.verify_gradients(twin, batch).bit_exact
    assert torch.equal(twin(**batch).logits, rf.make_reversible(model, rf.Midpoint())(**batch).logits)


@pytest.mark.parametrize("adapter_first", [True, False], ids=["PEFT before", "PEFT after"])
@pytest.mark.parametrize("dynamics", [rf.Hamiltonian(), rf.BlendedMidpoint("1/4")], ids=["hamiltonian", "blended"])
def test_lora(model, batch, adapter_first, dynamics):
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1, init_lora_weights=False)
    if not adapter_first:
        rf.make_reversible(model, dynamics)
    adapted = get_peft_model(model, lora)
    if adapter_first:
        assert rf.make_reversible(adapted, dynamics) is adapted
    adapted.train()
    report = rf.verify_gradients(adapted, batch)
    assert report.bit_exact
    assert report.parameters == 4 * 2 * 2
    merged = adapted.merge_and_unload()
    assert reversible_stack(merged).dynamics == dynamics
    rf.make_residual(merged)
    assert reversible_stack(merged) is None


def test_gradient_accumulation_adds_up_as_with_stored_activations(model, batch):
    rf.make_reversible(model, rf.Midpoint())
    gradients = {}
    for activations in ("store", "rebuild"):
        rf.set_activations(model, activations)
        model.zero_grad()
        for shift in range(3):
            model(input_ids=(batch["input_ids"] + shift) % 61, labels=batch["labels"]).loss.backward()
        gradients[activations] = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(map(torch.equal, gradients["store"], gradients["rebuild"]))


def test_input_embeddings_get_their_gradient(model, batch):
    rf.make_reversible(model, rf.Midpoint())
    gradients = []
    for activations in ("store", "rebuild"):
        rf.set_activations(model, activations)
        embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        model(inputs_embeds=embeddings, labels=batch["labels"]).loss.backward()
        gradients.append(embeddings.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_hidden_states_are_the_states_of_the_recurrence(model, batch):
    rf.make_reversible(model, rf.Leapfrog())
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 5
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    assert torch.allclose(states[0], embeddings, atol=1e-6)
    losses = []
    for activations in ("store", "rebuild"):
        rf.set_activations(model, activations)
        model.zero_grad()
        model(**batch, output_hidden_states=True).hidden_states[2].square().sum().backward()
        losses.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.equal(*losses)


def test_left_padded_batches(model, batch):
    mask = torch.ones_like(batch["input_ids"])
    mask[0, :5] = 0
    rf.make_reversible(model, rf.Midpoint())
    assert rf.verify_gradients(model, {**batch, "attention_mask": mask}).bit_exact


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beam", "sampled"])
@pytest.mark.parametrize("dynamics", [rf.Hamiltonian(), rf.BlendedMidpoint("1/4")], ids=["hamiltonian", "blended"])
def test_generation_with_and_without_cache(model, batch, dynamics, options):
    rf.make_reversible(model, dynamics)
    tokens = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0, **options}
        mask = torch.ones_like(batch["input_ids"])
        tokens.append(model.generate(batch["input_ids"], attention_mask=mask, use_cache=use_cache, **options))
    assert torch.equal(*tokens)


def shared_layers():
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    return model


def own_layers():
    class Unknown(nn.Module):
        def forward(self, hidden, **_):
            return hidden

    model = llama()
    for index in range(4):
        model.model.layers[index] = Unknown()
    return model


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def hooked():
    model = llama()
    model.model.layers[0].forward = lambda hidden, **_: hidden
    return model


@pytest.mark.parametrize(
    ("make", "dynamics", "activations", "error", "message"),
    [
        (t5, rf.Midpoint(), "rebuild", rf.NotReversibleError, "encoder-decoder"),
        (shared_layers, rf.Midpoint(), "rebuild", rf.NotReversibleError, "more than once"),
        (own_layers, rf.Hamiltonian(), "rebuild", rf.NotReversibleError, "where Unknown splits"),
        (lambda: nn.Linear(2, 2), rf.Midpoint(), "rebuild", rf.NotReversibleError, "not a transformers model"),
        (hooked, rf.Midpoint(), "rebuild", ValueError, "replaced by another library"),
        (llama, rf.Residual(), "rebuild", ValueError, "no inverse"),
        (llama, rf.Midpoint(), "recompute", ValueError, "no activation policy 'recompute'; choose one of store"),
        (llama, rf.BlendedMidpoint([0.5] * 3), "rebuild", ValueError, "3 blends for a model of 4 layers"),
        (llama, rf.Midpoint, "rebuild", TypeError, "takes a dynamics such as"),
    ],
)
def test_what_cannot_be_reversed_is_refused_and_left_as_it_was(make, dynamics, activations, error, message):
    model = make()
    before = {name: vars(module).get("forward") for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        rf.make_reversible(model, dynamics, activations)
    assert {name: vars(module).get("forward") for name, module in model.named_modules()} == before


def test_an_unknown_layer_is_reversible_by_block(batch):
    model = rf.make_reversible(own_layers(), rf.Midpoint())
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, 12, 61)


def test_set_activations_needs_a_reversible_model(model):
    with pytest.raises(ValueError, match="is an ordinary network"):
        rf.set_activations(model, "store")
    rf.make_reversible(model, rf.Residual(), "store")
    with pytest.raises(ValueError, match="no inverse"):
        rf.set_activations(model, "rebuild")
