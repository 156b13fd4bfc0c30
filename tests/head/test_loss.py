import copy
import inspect
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

import revformers as rf
from lab.bench.meter import peak_allocated_bytes
from revformers.head.loss import HeadLoss, apply_head, set_head_loss
from revformers.head.teacher import AdapterOff, FrozenCopy
from revformers.models.hidden import InseparableHeadError
from tests.tiny_models import FAMILIES, batch, tiny

OPTIONS = {"granite": {"logits_scaling": 3.0}, "mixtral": {"output_router_logits": True}}
"""What makes the loss of a family more than a product with the head's weights; gemma2's soft cap is its default."""


def masked(model):
    """A batch whose first sequence is masked in the middle and whose second one at the start."""
    inputs = batch(model)
    labels = inputs["labels"].clone()
    labels[0, 4:9] = labels[1, :7] = -100
    return inputs | {"labels": labels}


def step(model, inputs):
    """The loss of a training step, and every parameter's gradient."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(result, reference, tolerance):
    (loss, gradients), (expected_loss, expected) = result, reference
    assert abs(loss - expected_loss) <= tolerance * abs(expected_loss)
    assert gradients.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert all((gradients[name] - expected[name]).abs().max() <= tolerance * scale for name in expected)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "gpt2", "mixtral", "opt"])
def test_loss_and_gradients_are_those_of_transformers(family, chunk):
    model = tiny(family, initializer_range=0.2, **OPTIONS.get(family, {}))
    inputs = masked(model)
    reference = step(model, inputs)
    set_head_loss(model, HeadLoss(chunk=chunk))
    output = model(**inputs)
    assert output.logits is None
    assert "logits" not in output
    assert_close(step(model, inputs), reference, 3e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tested_in_depth_keeps_its_loss(family):
    model = tiny(family)
    inputs = masked(model)
    expected = model(**inputs).loss
    set_head_loss(model, HeadLoss(chunk=5))
    assert torch.allclose(model(**inputs).loss, expected, rtol=1e-6)


def test_gradients_in_float64():
    """Against a loss written out in float64; the norms of GPT-2 do not round to float32."""
    model = tiny("gpt2", dtype=torch.float64)
    inputs = masked(model)
    logits = model(input_ids=inputs["input_ids"]).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    set_head_loss(model, HeadLoss(chunk=3))
    assert_close(step(model, inputs), (loss.detach(), expected), 1e-12)


def test_the_auxiliary_loss_of_experts_counts_once_and_as_the_model_weighs_it():
    model = tiny("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    inputs = masked(model)
    expected = model(**inputs)
    model.config.output_router_logits = False
    without = model(**inputs).loss
    model.config.output_router_logits = True
    set_head_loss(model, HeadLoss(chunk=3))
    output = model(**inputs)
    assert torch.allclose(output.loss, expected.loss, rtol=1e-6)
    assert torch.allclose(output.aux_loss, expected.aux_loss)
    assert not torch.allclose(without, expected.loss, rtol=1e-2)


@pytest.mark.parametrize("number", [40, torch.tensor(40)], ids=["int", "tensor"])
def test_gradient_accumulation_divides_by_the_number_that_is_given(number):
    model = tiny("llama")
    inputs = masked(model)
    reference = step(model, inputs | {"num_items_in_batch": number})
    set_head_loss(model, HeadLoss(chunk=7))
    assert_close(step(model, inputs | {"num_items_in_batch": number}), reference, 3e-6)
    assert not torch.allclose(model(**inputs).loss, reference[0], rtol=1e-2)


def test_labels_that_are_shifted_already():
    model = tiny("llama")
    inputs = masked(model)
    shifted = functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    set_head_loss(model, HeadLoss(chunk=7))
    assert torch.equal(model(**inputs, shift_labels=shifted).loss, model(**inputs).loss)


def test_a_batch_without_a_token_that_counts_has_no_loss_and_zero_gradients():
    model = tiny("llama")
    inputs = batch(model) | {"labels": torch.full((2, 16), -100)}
    assert model(**inputs).loss.isnan()
    set_head_loss(model, HeadLoss())
    loss, gradients = step(model, inputs)
    assert loss == 0
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_against_all_logits_at_once(temperature):
    model = tiny("gemma2", initializer_range=0.2)
    teacher = FrozenCopy(model)
    rf.make_reversible(model, rf.BlendedMidpoint("1/2"))
    inputs = masked(model)
    counted = inputs["labels"][:, 1:] != -100
    with torch.no_grad(), rf.ordinary(model):
        expected = model(input_ids=inputs["input_ids"]).logits[:, :-1][counted] / temperature
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1][counted]
    divergence = functional.kl_div((logits / temperature).log_softmax(-1), expected.softmax(-1), reduction="batchmean")
    loss = 0.25 * functional.cross_entropy(logits, inputs["labels"][:, 1:][counted])
    loss = loss + 1.5 * temperature**2 * divergence
    loss.backward()
    reference = loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    set_head_loss(model, HeadLoss(0.25, 1.5, temperature, teacher, chunk=7))
    assert_close(step(model, inputs), reference, 1e-5)
    set_head_loss(model, HeadLoss(0.25, 0.0, temperature, teacher, chunk=7))
    assert not torch.allclose(model(**inputs).loss, reference[0], rtol=1e-2)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    model = tiny("llama")
    set_head_loss(model, HeadLoss(0.0, 1.0, teacher=FrozenCopy(model), chunk=7))
    loss, gradients = step(model, batch(model))
    assert loss.abs() < 1e-6
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.values())


def test_evaluation_is_the_plain_cross_entropy():
    model = tiny("llama")
    inputs = masked(model)
    expected = model.eval()(**inputs).loss
    set_head_loss(model, HeadLoss(0.5, 2.0, 3.0, FrozenCopy(tiny("gpt2")), chunk=7))
    assert torch.allclose(model(**inputs).loss, expected, rtol=1e-6)
    assert not torch.allclose(model.train()(**inputs).loss, expected, rtol=1e-2)


@pytest.mark.parametrize("dynamics", [rf.Hamiltonian(), rf.BlendedMidpoint("1/4")], ids=["hamiltonian", "blended"])
def test_rebuilt_gradients_equal_stored_ones_to_the_bit(dynamics):
    model = tiny("llama", attention_dropout=0.1)
    teacher = FrozenCopy(model)
    rf.make_reversible(model, dynamics)
    set_head_loss(model, HeadLoss(1.0, 1.0, teacher=teacher, chunk=7))
    assert rf.verify_gradients(model, masked(model)).bit_exact


def test_rebuilt_gradients_are_exact_under_autocast():
    model = tiny("gemma2")
    teacher = FrozenCopy(model)
    rf.make_reversible(model, rf.Midpoint())
    set_head_loss(model, HeadLoss(1.0, 1.0, teacher=teacher, chunk=7))
    with torch.autocast("cpu", torch.bfloat16):
        assert rf.verify_gradients(model, masked(model)).bit_exact


@pytest.mark.parametrize("head", [False, True], ids=["decoder adapted", "head adapted"])
def test_adapters_learn_from_the_model_without_them(head):
    model = tiny("llama")
    teacher = FrozenCopy(model)
    targets = ["q_proj", "down_proj", *["lm_head"] * head]
    lora = LoraConfig(r=2, target_modules=targets, lora_dropout=0.1, init_lora_weights=False)
    student = get_peft_model(rf.make_reversible(model, rf.Midpoint()), lora).train()
    inputs = masked(model)
    results = []
    for source in (teacher, AdapterOff(student)):
        set_head_loss(student, HeadLoss(0.5, 1.0, teacher=source, chunk=7))
        assert rf.verify_gradients(student, inputs).bit_exact
        torch.manual_seed(0)
        results.append(step(student, inputs))
    (loss, gradients), (expected_loss, expected) = results
    assert torch.equal(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert any(gradient.any() for gradient in gradients.values())


class LargestLogits(TorchDispatchMode):
    """Notes for how many tokens there are logits in one tensor."""

    def __init__(self, model):
        super().__init__()
        self.vocabulary, self.width = model.config.vocab_size, model.config.hidden_size
        self.tokens = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in tree_leaves(result):
            # The head's weight, transposed, ends in (width, vocabulary).
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            if shape[-1:] == (self.vocabulary,) and shape[-2:-1] != (self.width,):
                self.tokens = max(self.tokens, shape[:-1].numel())
        return result


@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_the_logits_of_one_chunk_exist_at_once(distillation):
    model = tiny("llama", vocab_size=251)
    inputs = batch(model)

    def most_tokens():
        with LargestLogits(model) as mode:
            model(**inputs).loss.backward()
        return mode.tokens

    assert most_tokens() == inputs["input_ids"].numel()
    set_head_loss(model, HeadLoss(1.0, distillation, teacher=FrozenCopy(model), chunk=4))
    assert most_tokens() == 4


def test_masked_tokens_do_not_reach_the_head():
    model = tiny("llama")
    inputs = masked(model)
    set_head_loss(model, HeadLoss(chunk=1000))
    tokens = []
    model.lm_head.register_forward_hook(lambda module, arguments, logits: tokens.append(logits.shape[:-1].numel()))
    with torch.no_grad():
        model(**inputs)
    assert sorted(tokens) == [2, (inputs["labels"][:, 1:] != -100).sum()]


def test_without_labels_or_without_a_head_loss_the_model_is_as_before():
    model = tiny("llama")
    inputs = batch(model)
    before = model(**inputs)
    signature = inspect.signature(model.forward)
    set_head_loss(model, HeadLoss())
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model(input_ids=inputs["input_ids"]).logits, before.logits)
    prompt = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])}
    with_loss = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    set_head_loss(model, None)
    assert "forward" not in vars(model)
    assert "forward" not in vars(model.model)
    assert torch.equal(model(**inputs).logits, before.logits)
    assert torch.equal(model.generate(**prompt, max_new_tokens=4, do_sample=False), with_loss)
    set_head_loss(model, None)


def test_labels_by_position_and_output_as_a_tuple():
    model = tiny("gpt2")
    inputs = batch(model)
    set_head_loss(model, HeadLoss(chunk=7))
    place = list(inspect.signature(model.forward).parameters).index("labels")
    loss = model(inputs["input_ids"], *[None] * (place - 1), inputs["labels"], return_dict=False)[0]
    assert torch.equal(loss, model(**inputs).loss)


def test_a_copy_and_saved_files(tmp_path):
    model = tiny("llama")
    teacher = FrozenCopy(model)
    names = list(model.state_dict())
    inputs = masked(model)
    rf.make_reversible(model, rf.Midpoint())
    set_head_loss(model, HeadLoss(1.0, 1.0, teacher=teacher, chunk=7))
    assert list(model.state_dict()) == names
    assert len(list(model.modules())) == len(list(teacher._model.modules()))
    twin = copy.deepcopy(model)
    expected = step(model, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = step(twin, inputs)
    assert torch.equal(result[0], expected[0])
    assert all(torch.equal(result[1][name], expected[1][name]) for name in expected[1])
    twin.save_pretrained(tmp_path / "reversible")
    loaded = rf.from_pretrained(tmp_path / "reversible")
    assert torch.equal(loaded(**inputs).logits, twin(input_ids=inputs["input_ids"]).logits)
    rf.make_residual(twin)
    assert torch.isfinite(step(twin, inputs)[0])
    twin.save_pretrained(tmp_path / "ordinary")
    assert list(AutoModelForCausalLM.from_pretrained(tmp_path / "ordinary").state_dict()) == names


def test_a_failed_step_leaves_the_model_usable():
    model = tiny("llama")
    inputs = masked(model)
    set_head_loss(model, HeadLoss(chunk=7))
    expected = model(**inputs).loss

    def fail(*_):
        raise KeyError

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(KeyError):
        model(**inputs)
    handle.remove()
    assert torch.equal(model(**inputs).loss, expected)
    assert "forward" not in vars(model.model)


def test_weights_that_are_released_after_each_evaluation_are_refused():
    """A stand-in for ZeRO-3, whose real one is in tests/distributed/test_zero.py."""
    model = tiny("llama")
    inputs = batch(model)
    expected = model(**inputs).loss
    for parameter in model.parameters():
        parameter.ds_tensor = parameter.detach()
    set_head_loss(model, HeadLoss())
    with pytest.raises(InseparableHeadError, match=r"ZeRO-3 releases the head of LlamaForCausalLM.*ZeRO-2 or FSDP2"):
        model(**inputs)
    apply_head(model, "auto")
    with pytest.warns(UserWarning, match="takes the logits of all tokens at once. ZeRO-3"):
        assert torch.equal(model(**inputs).loss, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_entropy": -1.0}, "at least 0 and not both 0"),
        ({"cross_entropy": 0.0}, "at least 0 and not both 0"),
        ({"cross_entropy": float("nan")}, "at least 0 and not both 0"),
        ({"distillation": 1.0}, "needs a teacher"),
        ({"temperature": 0.0}, "temperature of a HeadLoss is above 0, not 0"),
        ({"chunk": 0}, "at least 1 token, not 0"),
        ({"cross_entropy": 0.5, "required": False}, "plain cross-entropy can be left"),
    ],
)
def test_bad_losses_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadLoss(**options)


def with_a_loss_function_of_its_own():
    model = tiny("llama")
    model.loss_function = lambda *_, **__: 0
    return model


def with_a_replaced_forward():
    model = tiny("llama")
    model.forward = lambda **_: None
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(tiny, "XLNetLMHeadModel"),
            r"XLNetLMHeadModel does not compute its loss.*set_head_loss\(model, None\)",
        ),
        (with_a_loss_function_of_its_own, "does not compute its loss as"),
        (partial(tiny, "xLSTMForCausalLM"), "xLSTMForCausalLM cannot be applied to a few tokens at a time"),
        (with_a_replaced_forward, "replaced by another library"),
    ],
)
def test_models_that_compute_their_loss_otherwise_are_refused(make, message):
    model = make()
    before = vars(model).get("forward")
    with pytest.raises(ValueError, match=message):
        set_head_loss(model, HeadLoss())
    assert vars(model).get("forward") is before


class LossOfItsOwn(LlamaForCausalLM):
    """Shows only when it runs that it does not use `loss_function`."""

    def forward(self, input_ids, labels=None, logits_to_keep=0, **keywords):
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **keywords)
        output.loss = output.logits.float().square().mean()
        return output


def with_a_loss_of_its_own():
    model = tiny("llama")
    model.__class__ = LossOfItsOwn
    return model


def test_a_loss_that_is_required_is_refused_in_the_first_forward_pass():
    model = with_a_loss_of_its_own()
    set_head_loss(model, HeadLoss())
    with pytest.raises(InseparableHeadError, match="LossOfItsOwn does not compute its loss as"):
        model(**batch(model))


@pytest.mark.parametrize("make", [partial(tiny, "XLNetLMHeadModel"), with_a_loss_of_its_own])
def test_a_loss_that_is_not_required_is_left_to_models_that_compute_another(make):
    model = make()
    inputs = batch(model)
    expected = model(**inputs)

    def run():
        set_head_loss(model, HeadLoss(required=False))
        return model(**inputs)

    with pytest.warns(UserWarning, match=r"logits of all tokens at once\. \w+ does not compute its loss as"):
        output = run()
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.logits, expected.logits)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(("head", "chunked"), [("auto", True), ("chunked", True), ("own", False)])
def test_the_choice_of_a_command(head, chunked):
    model = tiny("llama")
    apply_head(model, head)
    assert (model(**batch(model)).logits is None) == chunked
    inseparable = tiny("xLSTMForCausalLM")
    if head == "chunked":
        with pytest.raises(InseparableHeadError):
            apply_head(inseparable, head)
    elif head == "auto":
        with pytest.warns(UserWarning, match="xLSTMForCausalLM cannot be applied to a few tokens at a time"):
            apply_head(inseparable, head)


@pytest.mark.thorough
def test_the_peak_is_below_five_percent_of_all_logits():
    model = tiny("llama", vocab_size=8192, hidden_size=32, num_hidden_layers=1)
    shape = 4, 1024
    ids = torch.randint(8192, shape, generator=torch.Generator().manual_seed(0))
    hidden = model.get_input_embeddings()(ids).detach().requires_grad_()

    # The decoder's own memory is another question.
    model.model.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden)

    def peak(head):
        apply_head(model, head)
        return peak_allocated_bytes(lambda: model(input_ids=ids, labels=ids).loss.backward(), hidden.device)

    assert peak("chunked") < 0.05 * peak("own")


def test_logits_to_keep_with_labels_is_refused():
    model = tiny("llama")
    set_head_loss(model, HeadLoss())
    with pytest.raises(ValueError, match="logits_to_keep cannot be combined"):
        model(**batch(model), logits_to_keep=3)


@pytest.mark.parametrize("required", [True, False])
def test_a_loss_function_that_is_assigned_afterwards_is_not_ignored(required):
    model = tiny("llama")
    set_head_loss(model, HeadLoss(required=required))
    model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 7
    if required:
        with pytest.raises(InseparableHeadError, match="was given another loss_function"):
            model(**batch(model))
    else:
        with pytest.warns(UserWarning, match="The loss takes the logits of all tokens at once"):
            assert model(**batch(model)).loss == 7
