import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

import revformers
from revformers import Residual, from_pretrained
from revformers.data.tokenizer import train_tokenizer
from revformers.errors import UserError
from revformers.models.parts import reversible_stack
from revformers.training import pretrain as pretrain_module
from revformers.training import trainer_run as module
from revformers.training.interruption import SaveOnSignal
from revformers.training.pretrain import pretrain, training_arguments
from tests.tiny_models import tiny
from tests.training.tiny import tiny_recipe


def run(recipe, **options):
    return pretrain(recipe, console=Console(file=io.StringIO()), **options)


def curve(result):
    """The loss curve without its times."""
    history = json.loads((result.directory / "history.json").read_text())
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def weights(result):
    return revformers.from_pretrained(result.directory / "model").state_dict()


@pytest.fixture
def interrupted_at(monkeypatch):
    """Return a function that makes Ctrl-C come during the given step."""

    def interrupt(step):
        class Interrupting(SaveOnSignal):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == step - 1:
                    os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(module, "SaveOnSignal", Interrupting)

    return interrupt


def test_a_run_leaves_a_model_a_curve_and_a_sample(tmp_path):
    result = run(tiny_recipe(tmp_path, {"sample.prompts": ["the"], "sample.max_new_tokens": 5}))
    assert result.finished
    assert result.step == 8
    history = json.loads((result.directory / "history.json").read_text())
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    assert [step for step, _ in losses] == [1, 2, 4, 6, 8]
    assert losses[-1][1] < losses[0][1] - 0.5
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4, 8]
    seconds = [entry["seconds"] for entry in history]
    assert seconds == sorted(seconds)
    metrics = json.loads((result.directory / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["tokens"] == 8 * 2 * 32
    assert metrics["validation_loss"] == history[-1]["eval_loss"]
    assert (result.directory / "sample.txt").read_text().startswith("the")
    model = revformers.from_pretrained(result.directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(result.directory / "model")
    assert reversible_stack(model).dynamics.name == "hamiltonian"
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0


@pytest.mark.thorough
def test_rebuilt_activations_train_the_same_weights_as_stored_ones(tmp_path):
    results = [
        run(tiny_recipe(tmp_path, {"dynamics.activations": policy, "output": str(tmp_path / policy)}))
        for policy in ("store", "rebuild")
    ]
    stored, rebuilt = (weights(result) for result in results)
    assert all(torch.equal(stored[name], rebuilt[name]) for name in stored)


@pytest.mark.thorough
@pytest.mark.parametrize("step", [1, 3, 5])  # before, and after a checkpoint and an evaluation
def test_an_interrupted_run_ends_as_one_that_went_through(tmp_path, interrupted_at, step):
    through = run(tiny_recipe(tmp_path, {"output": str(tmp_path / "through")}))
    interrupted_at(step)
    recipe = tiny_recipe(tmp_path, {"output": str(tmp_path / "interrupted")})
    stopped = run(recipe)
    assert not stopped.finished
    assert stopped.step == step
    assert stopped.signal == signal.SIGINT
    assert not (stopped.directory / "model").exists()
    interrupted_at(-1)
    resumed = run(recipe, resume=True)
    assert resumed.finished
    expected, got = weights(through), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(resumed) == curve(through)
    assert resumed.metrics["training_loss"] == through.metrics["training_loss"]


@pytest.mark.thorough
def test_the_loss_curve_does_not_depend_on_where_a_run_was_stopped(tmp_path, interrupted_at):
    """Inside a logging interval, which ends in the middle of another run, and once more inside it."""
    options = {"training.logging_steps": 4, "training.max_steps": 5}
    through = run(tiny_recipe(tmp_path, {**options, "output": str(tmp_path / "through")}))
    assert [entry["step"] for entry in curve(through) if "loss" in entry] == [1, 4, 5]
    recipe = tiny_recipe(tmp_path, {**options, "output": str(tmp_path / "stopped")})
    for step in (2, 3):
        interrupted_at(step)
        assert run(recipe, resume=step > 2).step == step
    interrupted_at(-1)
    resumed = run(recipe, resume=True)
    assert curve(resumed) == curve(through)
    assert resumed.metrics["training_loss"] == through.metrics["training_loss"]


def test_a_signal_in_the_last_step_does_not_keep_a_run_from_finishing(tmp_path, interrupted_at):
    interrupted_at(8)
    assert run(tiny_recipe(tmp_path)).finished


def test_a_run_that_died_after_its_last_step_takes_none_more(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(module.ShowProgress, "on_train_end", lambda *_, **__: ended.append(True))
    recipe = tiny_recipe(tmp_path, {"training.lr_scheduler_type": "constant"})
    through = run(recipe)
    expected = weights(through)
    for name in ("metrics.json", "history.json"):
        (through.directory / name).unlink()
    shutil.rmtree(through.directory / "model")
    resumed = run(recipe, resume=True)
    assert resumed.step == recipe.training.max_steps
    assert len(ended) == 2, "callbacks are told of every end"
    timed = ("seconds", "tokens_per_second")
    known = ({name: value for name, value in run.metrics.items() if name not in timed} for run in (through, resumed))
    assert next(known) == next(known)
    got = weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_run_whose_weights_overflow_goes_on_from_before(tmp_path):
    """The losses up to the checkpoint are finite, and only the weights of its last step are not."""
    options = {"training.max_grad_norm": 0.0, "training.save_steps": 1, "training.warmup_steps": 2}
    recipe = tiny_recipe(tmp_path, options | {"training.learning_rate": 1e39})
    with pytest.raises(UserError, match=r"not finite after step 2: .* from checkpoint-1, or --overwrite to start"):
        run(recipe)
    written = {path.name for path in Path(recipe.output).iterdir()}
    assert written.isdisjoint({"model", "metrics.json", "checkpoint-2"})
    assert run(tiny_recipe(tmp_path, options), resume=True).finished


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_the_figures_of_a_run_without_a_log_at_its_last_step_hold_its_loss(tmp_path, strategy):
    rare = {f"training.{name}": 10 for name in ("logging_steps", "eval_steps", "save_steps")}
    rare |= {"training.max_steps": 2, "training.arguments.logging_first_step": False}
    result = run(tiny_recipe(tmp_path, rare | {"training.arguments.save_strategy": strategy}))
    assert [entry["step"] for entry in curve(result) if "loss" in entry] == [2]
    assert 0 < result.metrics["training_loss"] == curve(result)[0]["loss"]


BEST = {
    "training.save_steps": 1,
    "training.eval_steps": 1,
    "training.arguments.load_best_model_at_end": True,
}


def test_the_figures_are_those_of_the_best_model_where_that_is_saved(tmp_path, monkeypatch):
    evaluate = pretrain_module.TextTrainer.evaluation_loop

    def rising(trainer, *arguments, **keywords):
        output = evaluate(trainer, *arguments, **keywords)
        output.metrics["eval_loss"] = 1 / output.metrics["eval_loss"]  # which falls in so few steps
        return output

    monkeypatch.setattr(pretrain_module.TextTrainer, "evaluation_loop", rising)
    recipe = tiny_recipe(tmp_path, BEST)
    result = run(recipe)
    history = json.loads((result.directory / "history.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert best < 8, "otherwise the last loss is the best one"
    assert (result.metrics["validation_loss"], result.metrics["best_step"]) == (losses[best], best)
    expected = weights(result)
    shutil.rmtree(result.directory / "model")
    (result.directory / "metrics.json").unlink()
    moved = result.directory.rename(tmp_path / "moved")
    resumed = run(tiny_recipe(tmp_path, BEST | {"output": str(moved)}), resume=True)
    assert (resumed.metrics["validation_loss"], resumed.metrics["best_step"]) == (losses[best], best)
    got = weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def rates(result):
    history = json.loads((result.directory / "history.json").read_text())
    return {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}


def test_a_finished_run_that_is_extended_follows_the_longer_schedule(tmp_path):
    """Of a cosine schedule that had ended, at the rate 0; against the rates of a run of that length."""
    options = {"training.logging_steps": 1, "training.max_steps": 4}
    run(tiny_recipe(tmp_path, options))
    longer = run(tiny_recipe(tmp_path, options | {"training.max_steps": 8}), resume=True)
    assert longer.metrics["steps"] == 8
    through = run(tiny_recipe(tmp_path, {"training.logging_steps": 1, "output": str(tmp_path / "through")}))
    assert [rates(longer)[step] for step in range(5, 9)] == [rates(through)[step] for step in range(5, 9)]
    again = run(tiny_recipe(tmp_path, options | {"training.max_steps": 8}), resume=True)
    assert again.metrics == longer.metrics


def test_a_changed_learning_rate_is_followed_and_another_batch_refused(tmp_path, interrupted_at):
    interrupted_at(3)
    run(tiny_recipe(tmp_path))
    interrupted_at(-1)
    with pytest.raises(UserError, match=r"was started with training\.per_device_train_batch_size 2, not 4"):
        run(tiny_recipe(tmp_path, {"training.per_device_train_batch_size": 4}), resume=True)
    changed = {"training.learning_rate": 1e-3, "training.logging_steps": 1}
    result = run(tiny_recipe(tmp_path, changed), resume=True)
    assert rates(result)[1] == 1e-2
    assert rates(result)[4] < 1e-3
    assert "# Up to step 3: training.learning_rate 0.01\n" in (result.directory / "recipe.yaml").read_text()


def test_a_tokenizer_that_is_trained_otherwise_is_noticed(tmp_path, monkeypatch):
    """The text is the same, but another version of the trainer, or a cache that was cleared, may give other tokens."""
    run(tiny_recipe(tmp_path, {"training.max_steps": 1}))
    build = pretrain_module.build_datasets

    def others(*arguments, **keywords):
        return train_tokenizer(["another text"], 300), *build(*arguments, **keywords)[1:]

    longer = tiny_recipe(tmp_path, {"training.max_steps": 2})
    with monkeypatch.context() as patched:
        patched.setattr(pretrain_module, "build_datasets", others)
        with pytest.raises(UserError, match=r"The tokenizer of the run in .* changed after checkpoint-1"):
            run(longer, resume=True)
    assert run(longer, resume=True).finished


def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path):
    recipe = tiny_recipe(tmp_path)
    first = run(recipe)
    expected = weights(first)
    file = first.directory / "checkpoint-8" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[-3000] ^= 1
    file.write_bytes(content)
    shown = io.StringIO()
    resumed = pretrain(recipe, resume=True, console=Console(file=shown, width=1000))
    assert f"{file} is damaged" in shown.getvalue()
    assert "the run continues from checkpoint-4" in shown.getvalue()
    got = weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.thorough
def test_a_result_is_that_of_its_checkpoint(tmp_path, monkeypatch):
    """A finished run goes back to an earlier checkpoint with another rate, and dies before its model is saved."""
    recipe = tiny_recipe(tmp_path)
    first = run(recipe)
    expected = weights(first)
    shutil.rmtree(first.directory / "checkpoint-8")
    changed = tiny_recipe(tmp_path, {"training.learning_rate": 1e-3})

    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pretrain_module, "run_metrics", fail)
        with pytest.raises(KeyboardInterrupt):
            run(changed, resume=True)
    result = run(changed, resume=True)
    assert result.metrics["training_loss"] != first.metrics["training_loss"]
    got = weights(result)
    assert not all(torch.equal(expected[name], got[name]) for name in expected)
    file = result.directory / "model" / "model.reversible.safetensors"
    file.unlink()  # its pages are those of `got`
    file.write_bytes(b"")
    shown = io.StringIO()
    again = pretrain(changed, resume=True, console=Console(file=shown, width=1000))
    assert (
        f"{file} is damaged (its content has changed since it was saved): the run ends again from" in shown.getvalue()
    )
    restored = weights(again)
    assert all(torch.equal(restored[name], got[name]) for name in got)


def test_a_run_that_a_step_refuses_overwrites_nothing(tmp_path):
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1})
    directory = run(recipe).directory
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="A budget of 1,024 bytes is too small"):
        run(tiny_recipe(tmp_path, {"dynamics.activations": "budget:1KiB"}), overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["checkpoint-8", "model"])
def test_a_full_disk_leaves_the_last_checkpoint_and_a_sentence(tmp_path, monkeypatch, place):
    recipe = tiny_recipe(tmp_path)
    save = PreTrainedTokenizerBase.save_pretrained

    def fail(tokenizer, directory, *arguments, **keywords):
        if Path(directory).name == place:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tokenizer, directory, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedTokenizerBase, "save_pretrained", fail)
        last = "checkpoint-8" if place == "model" else "checkpoint-4"
        with pytest.raises(UserError, match=rf"{place} failed: .*No space left .* which continues from {last}\.$"):
            run(recipe)
    assert run(recipe, resume=True).finished


@pytest.mark.parametrize(
    "place",
    [
        "revformers.training.trainer_arguments.TrainingArguments.__post_init__",
        "revformers.training.pretrain.build_datasets",
        "revformers.training.pretrain.TextTrainer.training_step",
        "revformers.training.pretrain.TextTrainer._save",
        "transformers.GPT2LMHeadModel.save_pretrained",
    ],
)
def test_the_end_of_another_process_is_one_sentence(tmp_path, monkeypatch, place):
    def fail(*arguments, **options):
        raise RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.")

    monkeypatch.setattr(place, fail)
    with pytest.raises(UserError, match=r"Another process of the run has ended; the run has no earlier checkpoint and"):
        run(tiny_recipe(tmp_path))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    recipe = tiny_recipe(tmp_path)
    first = run(recipe)
    before = (first.directory / "model" / "model.reversible.safetensors").stat().st_mtime_ns
    assert run(recipe, resume=True) == first
    assert (first.directory / "model" / "model.reversible.safetensors").stat().st_mtime_ns == before
    (first.directory / "metrics.json").write_text('{"steps": 8')  # cut short
    again = run(recipe, resume=True)
    assert json.loads((first.directory / "metrics.json").read_text()) == again.metrics
    for figure in ("training_loss", "validation_loss", "steps"):
        assert again.metrics[figure] == first.metrics[figure]


@pytest.mark.thorough
@pytest.mark.parametrize(("batch", "stop"), [(2, 3), (48, 6)])
def test_a_streamed_run_resumes(tmp_path, interrupted_at, batch, stop):
    """Also one whose stream, of 196 blocks, has begun again in the middle of a batch."""
    tokenizer = tmp_path / "through" / "model"
    run(tiny_recipe(tmp_path, {"output": str(tmp_path / "through"), "training.max_steps": 1}))
    options = {"data.tokenizer": str(tokenizer), "data.streaming": True, "data.validation_documents": 20}
    options["training.per_device_train_batch_size"] = batch
    streamed = run(tiny_recipe(tmp_path, {**options, "output": str(tmp_path / "a")}))
    interrupted_at(stop)
    recipe = tiny_recipe(tmp_path, {**options, "output": str(tmp_path / "b")})
    run(recipe)
    interrupted_at(-1)
    resumed = run(recipe, resume=True)
    expected, got = weights(streamed), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_order_of_a_stream_follows_the_seed_of_the_training(tmp_path, monkeypatch):
    def build_datasets(data, seed):
        raise UserError(f"seed {seed}")

    monkeypatch.setattr(pretrain_module, "build_datasets", build_datasets)
    with pytest.raises(UserError, match=r"^seed 5$"):
        run(tiny_recipe(tmp_path, {"training.seed": 5}))


def test_a_run_that_is_there_stays(tmp_path):
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1})
    run(recipe)
    with pytest.raises(UserError, match="already holds a run"):
        run(recipe)
    assert run(recipe, overwrite=True).finished


def test_the_training_section_reaches_the_trainer(tmp_path):
    recipe = tiny_recipe(
        tmp_path, {"training.precision": "bfloat16", "training.arguments.adam_epsilon": 1e-7, "training.max_steps": 3}
    )
    arguments = training_arguments(recipe)
    assert arguments.max_steps == 3
    assert arguments.learning_rate == 1e-2
    assert arguments.adam_epsilon == 1e-7
    assert arguments.bf16
    assert not arguments.fp16
    assert not arguments.gradient_checkpointing
    assert arguments.report_to == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.arguments.gradient_checkpointing": True}, "set dynamics.activations to checkpoint instead"),
        ({"training.lr_scheduler_type": "zigzag"}, "The Trainer refuses the training section"),
        (
            {"model.config.vocab_size": 100},
            "The tokenizer has 300 tokens, but the model's vocab_size is 100; raise model.config.vocab_size",
        ),
        ({"sample.prompts": ["the"], "sample.max_new_tokens": 60}, "lower sample.max_new_tokens"),
        ({"output": ""}, "names no run directory"),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tiny_recipe(tmp_path, overrides))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_error_in_training_is_not_taken_for_an_interruption(tmp_path, monkeypatch):
    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ZeroDivisionError

    monkeypatch.setattr(module, "Clock", type("Clock", (Failing, module.Clock), {}))
    with pytest.raises(ZeroDivisionError):
        run(tiny_recipe(tmp_path))


def test_the_ordinary_network_is_saved_as_one(tmp_path):
    result = run(tiny_recipe(tmp_path, {"dynamics.name": "residual", "dynamics.activations": "store"}))
    model = AutoModelForCausalLM.from_pretrained(result.directory / "model")
    assert reversible_stack(model) is None
    assert json.loads((result.directory / "model/config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize("option", [{"readout": "mean"}, {"step_size": 2.0}])
def test_a_residual_network_that_others_would_compute_differently_is_not_saved_as_the_ordinary_one(tmp_path, option):
    changes = {"dynamics.name": "residual", "dynamics.activations": "store", "dynamics.options": option}
    result = run(tiny_recipe(tmp_path, changes))
    stack = reversible_stack(from_pretrained(result.directory / "model"))
    assert stack is not None
    assert stack.dynamics == Residual(**option)


@pytest.mark.parametrize(("head", "chunked"), [("auto", True), ("chunked", True), ("own", False)])
def test_the_head_is_chunked_unless_that_is_switched_off(head, chunked, tmp_path, monkeypatch):
    logits = []

    def train(trainer, *_, **__):
        batch = next(iter(trainer.get_train_dataloader()))
        logits.append(trainer.model(**batch).logits)
        return "stopped"

    monkeypatch.setattr(pretrain_module, "train_to_end", train)
    assert run(tiny_recipe(tmp_path, {"loss.head": head})) == "stopped"
    assert (logits[0] is None) == chunked


@pytest.mark.thorough
def test_a_run_with_the_chunked_head_learns_what_one_with_all_logits_learns(tmp_path):
    losses = {}
    for head in ("chunked", "own"):
        result = run(tiny_recipe(tmp_path, {"loss.head": head, "output": str(tmp_path / head)}))
        losses[head] = result.metrics["validation_loss"]
    assert losses["chunked"] == pytest.approx(losses["own"], rel=1e-4)


def test_a_model_that_cannot_be_chunked_is_refused_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_module, "build_model", lambda recipe: tiny("xLSTMForCausalLM", vocab_size=300))
    with pytest.raises(UserError, match="head of xLSTMForCausalLM cannot be applied"):
        run(tiny_recipe(tmp_path, {"loss.head": "chunked"}))


def test_mlps_are_evaluated_in_tiles_where_asked_for(tmp_path, monkeypatch):
    tokens = []

    def train(trainer, *_, **__):
        layer = trainer.model.transformer.h[0]
        layer.mlp.c_fc.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
        trainer.model(**next(iter(trainer.get_train_dataloader())))
        return "stopped"

    monkeypatch.setattr(pretrain_module, "train_to_end", train)
    run(tiny_recipe(tmp_path, {"training.mlp_tile": 24}))
    assert tokens == [24, 24, 16]
    monkeypatch.setattr(pretrain_module, "build_model", lambda recipe: tiny("mixtral", vocab_size=300))
    with pytest.raises(UserError, match="cannot be evaluated in tiles"):
        run(tiny_recipe(tmp_path, {"training.mlp_tile": 24}))
