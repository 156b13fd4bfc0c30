import itertools
import warnings

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, Trainer, TrainingArguments

import revformers as rf
from revformers.data.tokenizer import train_tokenizer
from revformers.engine.fixed_point import INT64
from tests.models.varying_kernels import varying_backward
from tests.training.tiny import write_text

LORA = LoraConfig(r=2, target_modules="all-linear")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 64).read_text().splitlines()


@pytest.fixture(scope="module")
def tokenizer(lines):
    tokenizer = train_tokenizer(lines, 300)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_of(tokenizer, kind=LlamaForCausalLM, dynamics=rf.Midpoint(), activations="rebuild", **options):  # noqa: B008
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        attention_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **options,
    )
    return rf.make_reversible(kind(config), dynamics, activations)


def arguments(directory, kind=TrainingArguments, **options):
    return kind(
        **{
            "output_dir": str(directory),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **options,
        }
    )


def rows(tokenizer, lines):
    return Dataset.from_list([{"input_ids": ids[:20], "labels": ids[:20]} for ids in tokenizer(lines)["input_ids"]])


def trainer_of(directory, model, tokenizer, lines, callbacks, **options):
    blocks = rows(tokenizer, lines).filter(lambda row: len(row["input_ids"]) == 20)
    return Trainer(model, arguments(directory, **options), train_dataset=blocks, callbacks=callbacks)


def figures(trainer):
    return {
        name: value
        for entry in reversed(trainer.state.log_history)
        for name, value in entry.items()
        if name.startswith("reversible/")
    }


def test_it_verifies_and_logs_on_the_first_batch(tokenizer, lines, tmp_path, capsys):
    callback = rf.ReversibleCallback()
    model = model_of(tokenizer)
    trainer = trainer_of(tmp_path, model, tokenizer, lines, [callback])
    trainer.train()
    assert callback.report.bit_exact
    assert callback.report.entries == model.num_parameters()
    logged = figures(trainer)
    assert logged["reversible/gradients_exact"] == 1
    width = 2 * 20 * 32
    assert logged["reversible/memory_states"] == 2 * 8 * width  # two states in 64 bits
    weights = 4 * model.num_parameters()
    assert weights <= logged["reversible/memory_weights"] < weights + 1000  # and buffers
    assert logged["reversible/memory_total"] == callback.memory.total
    for entry in trainer.state.log_history[:2]:
        assert 0 < entry["reversible/state_magnitude"] < 100
        assert entry["reversible/state_range"] == entry["reversible/state_magnitude"] / INT64.maximum_magnitude
    assert "reversible/memory_states" not in trainer.state.log_history[1]
    assert "reversible/state_magnitude" in capsys.readouterr().out
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("verify", [True, False])
def test_under_a_budget_it_measures_a_pass_that_spends_it(verify, tokenizer, lines, tmp_path):
    stored, spent = (rf.ReversibleCallback(verify=verify) for _ in range(2))
    for callback, policy in ((stored, rf.Store()), (spent, rf.Budget("1GiB"))):
        model = model_of(tokenizer, activations=policy)
        trainer_of(tmp_path, model, tokenizer, lines, [callback], max_steps=1).train()
    assert rf.budget_report(model).stored == 3
    assert 0 < spent.memory.activations == stored.memory.activations


def test_the_state_magnitude_is_the_largest_that_hooks_on_the_layers_see(tokenizer, lines, tmp_path):
    model = model_of(tokenizer, dynamics=rf.BlendedMidpoint(0.5))
    seen = []
    for layer in model.model.layers:
        # The last layer returns what the head reads, which is the last state here.
        layer.register_forward_hook(lambda _, arguments, output: seen.append(output.abs().max().item()))
    model.model.embed_tokens.weight.data.mul_(1000)  # so that states, not updates, are largest
    trainer = trainer_of(
        tmp_path, model, tokenizer, lines, [rf.ReversibleCallback(verify=False, memory=False)], max_steps=1
    )
    trainer.train()
    embeddings = model.model.embed_tokens.weight.abs().max().item()
    assert max(seen) <= figures(trainer)["reversible/state_magnitude"] <= max(*seen, embeddings * 1.01)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
def test_training_is_what_it_is_without_the_callback(tokenizer, lines, tmp_path, options):
    results = []
    for callbacks in ([], [rf.ReversibleCallback()]):
        model = model_of(tokenizer, activations="checkpoint")
        trainer = trainer_of(tmp_path, model, tokenizer, lines, callbacks, max_steps=3, **options)
        trainer.train()
        results.append(([entry.get("loss") for entry in trainer.state.log_history], model.state_dict()))
        assert model.model._reversible_stack.activations == rf.Checkpoint()
    assert callbacks[0].report.bit_exact
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def forgetful(model):
    """Give the model a layer that does not repeat itself, as a module that counts its calls does."""
    calls = itertools.count()
    model.model.layers[1].mlp.register_forward_hook(lambda _, arguments, output: output * (1 + 1e-3 * next(calls)))
    return model


def test_a_layer_that_does_not_repeat_itself_is_reported(tokenizer, lines, tmp_path):
    """Stored activations train, but the verification rebuilds."""
    model = forgetful(model_of(tokenizer, activations="store"))
    callback = rf.ReversibleCallback()
    with pytest.raises(rf.RebuildMismatchError, match="Look at what the modules do not show") as caught:
        trainer_of(tmp_path, model, tokenizer, lines, [callback]).train()
    assert caught.value.__notes__ == ["This was in step 1 of training."]
    assert callback.report is None
    assert model.model._reversible_stack.activations == rf.Store()


def test_a_mismatch_that_the_verification_sees_alone_is_reported(tokenizer, lines, tmp_path, monkeypatch):
    monkeypatch.setattr("revformers.engine.proof.verdicts.Verdicts.add", lambda *_: None)
    model = forgetful(model_of(tokenizer, activations="store"))
    with pytest.raises(rf.RebuildMismatchError, match="first batch of the training, rebuilt gradients DIFFER"):
        trainer_of(tmp_path, model, tokenizer, lines, [rf.ReversibleCallback()]).train()


@pytest.mark.parametrize("deterministic_form", [True, False])
def test_kernels_that_vary_from_call_to_call_do_not_end_the_training(
    deterministic_form, tokenizer, lines, tmp_path, monkeypatch
):
    """As the backward pass of fused attention does on GPUs."""
    model = varying_backward(monkeypatch, model_of(tokenizer), deterministic_form)
    callback = rf.ReversibleCallback()
    trainer = trainer_of(tmp_path, model, tokenizer, lines, [callback])
    if deterministic_form:
        trainer.train()
        assert callback.report.kernels == "deterministic"
    else:
        with pytest.warns(UserWarning, match=r"(?s)rebuilt gradients CANNOT BE COMPARED .*The training goes on"):
            trainer.train()
        assert callback.report is None
    assert trainer.state.global_step == 2
    assert figures(trainer).get("reversible/gradients_exact") == (1 if deterministic_form else None)


class BreakAt(rf.ReversibleCallback):
    """As the callback, but something happens to the model before a step."""

    def __init__(self, step, break_it):
        super().__init__()
        self.broken_at, self.break_it = step, break_it

    def on_step_begin(self, args, state, control, **kwargs):
        super().on_step_begin(args, state, control, **kwargs)
        if state.global_step + 1 == self.broken_at:
            self.break_it(kwargs["model"])


def test_a_mismatch_later_says_when_and_that_it_was_exact_before(tokenizer, lines, tmp_path):
    callback = BreakAt(2, forgetful)
    with pytest.raises(rf.RebuildMismatchError) as caught:
        trainer_of(tmp_path, model_of(tokenizer), tokenizer, lines, [callback]).train()
    assert caught.value.__notes__ == ["This was in step 2 of training. The gradients of the first batch were exact."]


def test_states_out_of_range_say_when_and_what_to_do(tokenizer, lines, tmp_path):
    def explode(model):
        with torch.no_grad():
            model.model.embed_tokens.weight.fill_(1e8)

    callback = BreakAt(2, explode)
    with pytest.raises(rf.StateRangeError) as caught:
        trainer_of(tmp_path, model_of(tokenizer), tokenizer, lines, [callback]).train()
    (note,) = caught.value.__notes__
    assert note.startswith("This was in step 2 of training. If ")
    assert "lower the learning rate" in note
    assert not hasattr(rf.StateRangeError("an error of no training"), "__notes__")


def test_a_training_that_another_error_ends_leaves_nothing_behind(tokenizer, lines, tmp_path):
    def fail(model):
        raise KeyError("an error of the data")

    model = model_of(tokenizer)
    with pytest.raises(KeyError):
        trainer_of(tmp_path, model, tokenizer, lines, [BreakAt(1, fail)]).train()
    assert not model._forward_pre_hooks
    assert not hasattr(rf.StateRangeError("of another model"), "__notes__")


def test_errors_outside_of_the_training_have_no_note(tokenizer, lines, tmp_path):
    callback = rf.ReversibleCallback()
    trainer_of(tmp_path, model_of(tokenizer), tokenizer, lines, [callback], max_steps=1).train()
    assert not hasattr(rf.StateRangeError("too large"), "__notes__")


def test_an_ordinary_model_is_refused_in_one_sentence(tokenizer, lines, tmp_path):
    model = rf.make_residual(model_of(tokenizer))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is an ordinary network; call revformers\.make_rev"):
        trainer_of(tmp_path, model, tokenizer, lines, [rf.ReversibleCallback()]).train()


def test_a_trainer_that_passes_the_model_by_is_warned_of(tokenizer, lines, tmp_path):
    class Direct(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            hidden = model.model(input_ids=inputs["input_ids"]).last_hidden_state
            return nn.functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), inputs["labels"].flatten())

    blocks = rows(tokenizer, lines).filter(lambda row: len(row["input_ids"]) == 20)
    trainer = Direct(
        model_of(tokenizer), arguments(tmp_path), train_dataset=blocks, callbacks=[rf.ReversibleCallback()]
    )
    with pytest.warns(UserWarning, match="could verify nothing: in its first step the trainer never called"):
        trainer.train()


def test_hooks_that_step_inside_the_backward_pass_are_left_alone(tokenizer, lines, tmp_path):
    model = model_of(tokenizer)
    steps = []
    model.lm_head.weight.register_post_accumulate_grad_hook(steps.append)
    with pytest.warns(UserWarning, match="inside the backward pass"):
        trainer_of(tmp_path, model, tokenizer, lines, [rf.ReversibleCallback()]).train()
    assert len(steps) == 2


PROMPTS = [{"prompt": "the model", "chosen": " reads a state", "rejected": " never learns"}] * 8


def reward(completions, **_):
    return [float(len(completion)) for completion in completions]


@pytest.mark.thorough
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward", "GRPO"])
def test_it_verifies_what_the_model_gets_from_the_trainers_of_trl(name, adapter, tokenizer, lines, tmp_path):
    trl = pytest.importorskip("trl")
    kinds = {"Reward": LlamaForSequenceClassification}
    kind = kinds.get(name, LlamaForCausalLM)
    options = {"num_labels": 1} if name == "Reward" else {}
    model = model_of(tokenizer, kind, **options)
    data = {"SFT": [{"text": line} for line in lines], "GRPO": [{"prompt": row["prompt"]} for row in PROMPTS]}
    extra = {"GRPO": {"num_generations": 2, "max_completion_length": 6}}.get(name, {})
    config = arguments(tmp_path, getattr(trl, f"{name}Config"), gradient_checkpointing=False, **extra)
    callback = rf.ReversibleCallback()
    keywords = {"reward_funcs": reward} if name == "GRPO" else {}
    if name == "DPO" and adapter is None:
        keywords["ref_model"] = model_of(tokenizer)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = getattr(trl, f"{name}Trainer")(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(data.get(name, PROMPTS)),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[callback],
            **keywords,
        )
        trainer.model.register_forward_pre_hook(
            lambda network, _, inputs: seen.append(inputs) if network.training and torch.is_grad_enabled() else None,
            with_kwargs=True,
        )
        trainer.train()
    assert callback.report.bit_exact
    trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    # A frozen-at-zero half of an adapter still has a gradient, of zeros.
    assert callback.report.parameters == len(trainable)
    assert figures(trainer)["reversible/memory_states"] > 0
    assert seen[0].keys() == seen[1].keys()  # the trainer's own call, then that of the verification
    assert torch.equal(seen[0]["input_ids"], seen[1]["input_ids"])
