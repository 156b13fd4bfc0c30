import io
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import revformers as rf
from revformers import load_adapter
from revformers.checkpoints.adapter_base import MARK
from revformers.checkpoints.load import load_tokenizer
from revformers.errors import MissingPackageError, UserError
from revformers.models.parts import reversible_stack, update_predictors
from revformers.training import finetune as finetune_module
from revformers.training import trainer_run
from revformers.training.finetune import finetune
from revformers.training.interruption import SaveOnSignal
from revformers.training.run_directory import RunDirectory
from revformers.training.trainer_run import begin_in_directory
from tests.training.tiny_finetune import (
    COLUMNS,
    CONVERSATIONS,
    INSTRUCTIONS,
    TEMPLATE,
    tiny_finetune_recipe,
    write_records,
)

LORA = {"adapter.kind": "lora", "adapter.rank": 2}
IDS = torch.randint(200, (2, 20), generator=torch.Generator().manual_seed(0))


def run(recipe, **options):
    output = io.StringIO()
    result = finetune(recipe, console=Console(file=output, width=200), **options)
    result.metrics["shown"] = output.getvalue()
    return result


def recipe_in(shared, tmp_path, overrides=None):
    return tiny_finetune_recipe(shared, {"output": str(tmp_path / "run"), **(overrides or {})})


def weights(result):
    return rf.from_pretrained(result.directory / "model").state_dict()


def curve(result, name):
    history = json.loads((result.directory / "history.json").read_text())
    return [entry[name] for entry in history if name in entry]


def files(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def interrupted_at(monkeypatch):
    def interrupt(step):
        class Interrupting(SaveOnSignal):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == step - 1:
                    os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(trainer_run, "SaveOnSignal", Interrupting)

    return interrupt


@pytest.mark.thorough
def test_a_run_converts_trains_and_leaves_a_reversible_model(shared, tmp_path):
    result = run(recipe_in(shared, tmp_path, {"training.max_steps": 8, "training.learning_rate": 1e-2}))
    assert result.finished
    metrics = json.loads((result.directory / "metrics.json").read_text())
    assert metrics["steps"] == 8
    assert metrics["tokens"] == 8 * 2 * 32
    assert metrics["validation_loss"] < metrics["initial_validation_loss"] - 0.3
    assert "original validation loss" in result.metrics["shown"]
    model = rf.from_pretrained(result.directory / "model")
    assert reversible_stack(model).activations == rf.Rebuild()
    assert len(update_predictors(model)) == 6
    assert rf.verify_gradients(model, {"input_ids": IDS}).bit_exact
    assert (result.directory / "recipe.yaml").is_file()


@pytest.mark.thorough
def test_the_loss_before_training_is_that_of_the_ordinary_network(shared, tmp_path):
    """Against transformers' own loss of the model that was never converted."""
    result = run(recipe_in(shared, tmp_path, {"training.max_steps": 1}))
    recipe = recipe_in(shared, tmp_path)
    tokenizer = load_tokenizer(recipe.model.name)
    data = finetune_module.load_finetune_data(recipe.data, tokenizer)
    blocks = torch.stack([block["input_ids"] for block in data.validation])
    model = AutoModelForCausalLM.from_pretrained(shared / "model")
    with torch.no_grad():
        expected = model(input_ids=blocks, labels=blocks).loss.item()
    assert result.metrics["original_validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["initial_validation_loss"] != pytest.approx(expected, rel=1e-5)


@pytest.mark.thorough
def test_rebuilt_activations_train_the_same_weights_as_stored_ones(shared, tmp_path):
    options = {"loss.distillation": 0.5, "annealing.steps": 2}
    results = [
        run(recipe_in(shared, tmp_path, {**options, "conversion.activations": name, "output": str(tmp_path / name)}))
        for name in ("store", "rebuild")
    ]
    stored, rebuilt = (weights(result) for result in results)
    assert all(torch.equal(stored[name], rebuilt[name]) for name in stored)


@pytest.mark.thorough
def test_one_batch_of_eight_trains_as_four_of_two(shared, tmp_path):
    results = [
        run(
            recipe_in(
                shared,
                tmp_path,
                {
                    "training.per_device_train_batch_size": size,
                    "training.gradient_accumulation_steps": 8 // size,
                    "output": str(tmp_path / str(size)),
                    "data.source": str(write_records(tmp_path / "a.json", INSTRUCTIONS)),
                    "data.columns": COLUMNS,
                },
            )
        )
        for size in (8, 2)
    ]
    together, apart = (curve(result, "loss") for result in results)
    assert together == pytest.approx(apart, rel=1e-4)
    assert results[0].metrics["tokens"] == results[1].metrics["tokens"]


@pytest.mark.thorough
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_an_interrupted_run_in_the_middle_of_annealing_ends_as_one_that_went_through(
    shared, tmp_path, interrupted_at, adapter
):
    options = {
        **adapter,
        "annealing.steps": 3,
        "training.save_steps": 100,
        "adapter.dropout": 0.1,
        "conversion.options": {"allocation": "uniform"},
    }
    through = run(recipe_in(shared, tmp_path, {**options, "output": str(tmp_path / "through")}))
    interrupted_at(2)
    recipe = recipe_in(shared, tmp_path, {**options, "output": str(tmp_path / "interrupted")})
    stopped = run(recipe)
    assert not stopped.finished
    assert stopped.step == 2
    interrupted_at(-1)
    resumed = run(recipe, resume=True)
    assert resumed.finished
    saved = [files(result.directory / ("adapter" if adapter else "model")) for result in (through, resumed)]
    assert "provenance" in saved[0]["reversible.json" if adapter else "config.json"].decode()
    assert saved[0] == saved[1]
    assert curve(through, "eval_loss") == curve(resumed, "eval_loss")
    assert (
        reversible_stack(
            load_adapter(resumed.directory / "adapter") if adapter else rf.from_pretrained(resumed.directory / "model")
        ).dynamics.blend
        == rf.BlendedMidpoint(["1/2"] * 6).blend
    )


@pytest.mark.thorough
def test_the_best_model_of_an_annealed_run_is_the_one_that_was_evaluated(shared, tmp_path):
    """The losses of steps before, of nearly the ordinary network, are lower."""
    best = {"training.arguments": {"use_cpu": True, "load_best_model_at_end": True}, "annealing.steps": 3}
    steps = {
        "training.eval_steps": 1,
        "training.save_steps": 1,
        "training.max_steps": 5,
        "training.learning_rate": 1e-6,
    }
    result = run(recipe_in(shared, tmp_path, {**best, **steps, "conversion.bits": 0}))
    assert min(curve(result, "eval_loss")) < result.metrics["validation_loss"]
    assert result.metrics["best_step"] > 3
    again = {"model.name": str(result.directory / "model"), "conversion.bits": None, "output": str(tmp_path / "again")}
    loss = run(recipe_in(shared, tmp_path, again)).metrics["initial_validation_loss"]
    assert loss == pytest.approx(result.metrics["validation_loss"], abs=1e-6)


@pytest.mark.thorough
def test_an_adapter_that_holds_a_part_of_the_weights_does_not_change_what_the_original_is(shared, tmp_path):
    names = ("gaussian", "pissa")
    options = {**LORA, "conversion.bits": 6, "training.max_steps": 1}
    plain, taken = (
        run(
            recipe_in(
                shared,
                tmp_path,
                {**options, "adapter.options": {"init_lora_weights": name}, "output": str(tmp_path / name)},
            )
        ).metrics
        for name in names
    )
    for figure in ("original_validation_loss", "initial_validation_loss"):
        assert taken[figure] == pytest.approx(plain[figure], rel=1e-5)


@pytest.mark.thorough
def test_an_adapter_loads_with_its_conversion_and_not_without(shared, tmp_path):
    result = run(recipe_in(shared, tmp_path, {**LORA, "adapter.merge": True, "training.learning_rate": 1e-2}))
    adapter = load_adapter(result.directory / "adapter")
    assert isinstance(adapter, PeftModel)
    merged = rf.from_pretrained(result.directory / "model")
    ordinary = AutoModelForCausalLM.from_pretrained(shared / "model")
    with torch.no_grad():
        logits = adapter(IDS).logits
        assert torch.allclose(logits, merged(IDS).logits, atol=1e-3)
        assert not torch.allclose(logits, ordinary(IDS).logits, atol=1e-1)
    with pytest.raises(ValueError, match=r"is an ordinary network; load both with revformers\.load_adapter"):
        PeftModel.from_pretrained(ordinary, str(result.directory / "adapter"))
    checkpoint = result.directory / "checkpoint-4"
    assert json.loads((checkpoint / "adapter_config.json").read_text())["peft_type"] == "LORA" + MARK
    with torch.no_grad():
        assert torch.equal(load_adapter(checkpoint)(IDS).logits, logits)


@pytest.mark.thorough
def test_a_loaded_adapter_saves_itself_again(shared, tmp_path):
    result = run(recipe_in(shared, tmp_path, {**LORA, "training.max_steps": 1}))
    adapter = load_adapter(result.directory / "adapter", trainable=True)
    assert rf.verify_gradients(adapter.train(), {"input_ids": IDS}).bit_exact
    adapter.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_adapter(tmp_path / "again")(IDS).logits, adapter.eval()(IDS).logits)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("quantization", "package", "kind"), [("int8", "torchao", "Int8"), ("nf4", "bitsandbytes", "Params4bit")]
)
def test_an_adapter_on_quantised_weights_has_exact_gradients_and_learns(shared, tmp_path, quantization, package, kind):
    pytest.importorskip(package)
    options = {"model.quantization": quantization, "training.learning_rate": 1e-2, "loss.distillation": 0.1}
    result = run(recipe_in(shared, tmp_path, {**LORA, **options}))
    assert result.metrics["validation_loss"] < result.metrics["initial_validation_loss"]
    adapter = load_adapter(result.directory / "adapter", trainable=True).train()
    layer = adapter.get_base_model().model.layers[0].self_attn.q_proj
    assert kind in type(layer.base_layer.weight).__name__
    assert rf.verify_gradients(adapter, {"input_ids": IDS}).bit_exact


@pytest.mark.parametrize(
    ("records", "columns"),
    [
        (INSTRUCTIONS, COLUMNS),
        (CONVERSATIONS, {}),
        ([{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in CONVERSATIONS], {}),
    ],
    ids=["prompt_completion", "messages", "conversational prompt_completion"],
)
def test_instructions_and_conversations_are_learnt(shared, tmp_path, records, columns):
    source = str(write_records(tmp_path / "a.json", records))
    overrides = {"data.source": source, "data.columns": columns, "training.max_steps": 8, "annealing.steps": 2}
    result = run(recipe_in(shared, tmp_path, {**overrides, "training.learning_rate": 1e-2}))
    assert result.metrics["validation_loss"] < result.metrics["initial_validation_loss"] - 0.3
    assert 0 < result.metrics["tokens"] < 8 * 2 * 32  # padding does not count
    assert "does not mark" not in result.metrics["shown"]
    assert rf.from_pretrained(result.directory / "model")


@pytest.mark.parametrize("appended", [False, True])
def test_the_loss_of_instructions_is_that_of_their_completions(shared, tmp_path, appended):
    """Against the cross-entropy of the completions by hand, on the ordinary network.

    One end-of-sequence token counts, whether or not the tokenizer appends it to every text.
    """
    source = str(write_records(tmp_path / "a.json", INSTRUCTIONS))
    overrides = {"data.source": source, "data.columns": COLUMNS, "training.max_steps": 1, "data.validation_blocks": 1}
    tokenizer = load_tokenizer(recipe_in(shared, tmp_path).model.name)
    if appended:
        appending = load_tokenizer(shared / "model")
        appending.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A END", special_tokens=[("END", tokenizer.eos_token_id)]
        )
        appending.save_pretrained(tmp_path / "appending")
        overrides["model.tokenizer"] = str(tmp_path / "appending")
    result = run(recipe_in(shared, tmp_path, overrides))
    model = AutoModelForCausalLM.from_pretrained(shared / "model")
    row = INSTRUCTIONS[0]
    prompt = tokenizer(f"{row['instruction']} {row['input']}\n")["input_ids"]
    completion = tokenizer(row["output"])["input_ids"] + [tokenizer.eos_token_id]
    labels = torch.tensor([[-100] * len(prompt) + completion])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.item()
    assert result.metrics["original_validation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.thorough
def test_records_without_a_token_to_train_on_are_counted_or_refused(shared, tmp_path):
    """A prompt that fills the block leaves nothing of its completion."""
    records = [{**row, "instruction": "long " * 40 * (n in (2, 5))} for n, row in enumerate(INSTRUCTIONS)]
    overrides = {"data.columns": COLUMNS, "training.max_steps": 1, "data.validation_documents": 2}
    source = {"data.source": str(write_records(tmp_path / "a.json", records))}
    result = run(recipe_in(shared, tmp_path, {**overrides, **source}))
    assert "2 of 38 training records have no trained token in their first 32 tokens" in " ".join(
        result.metrics["shown"].split()
    )
    assert "validation records" not in result.metrics["shown"]
    for part in ("training", "validation"):
        kept = [0, 1] if part == "training" else range(2, 40)
        records = [{**row, "instruction": "long " * 40 * (n not in kept)} for n, row in enumerate(INSTRUCTIONS)]
        source = {"data.source": str(write_records(tmp_path / "a.json", records)), "output": str(tmp_path / part)}
        with pytest.raises(UserError, match=rf"None of the \d+ {part} records has a trained token"):
            run(recipe_in(shared, tmp_path, {**overrides, **source}))


def test_a_template_that_does_not_mark_the_assistant_trains_on_all_and_says_so(shared, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "model")
    tokenizer.chat_template = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = str(write_records(tmp_path / "a.json", CONVERSATIONS))
    options = {"data.source": source, "model.tokenizer": str(tmp_path / "tokenizer"), "training.max_steps": 1}
    result = run(recipe_in(shared, tmp_path, options))
    shown = " ".join(result.metrics["shown"].split())
    assert "does not mark what the assistant says: the loss covers whole conversations" in shown
    assert "put {% generation %} and {% endgeneration %} around what it says in the template" in shown


@pytest.mark.parametrize(
    ("package", "overrides"),
    [
        ("trl", {"data.columns": COLUMNS}),
        ("peft", LORA),
        ("torchao.quantization", {**LORA, "model.quantization": "int8"}),
        ("bitsandbytes", {**LORA, "model.quantization": "nf4"}),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(shared, tmp_path, monkeypatch, package, overrides):
    monkeypatch.setitem(sys.modules, package, None)
    source = str(write_records(tmp_path / "a.json", INSTRUCTIONS))
    with pytest.raises(MissingPackageError, match="pip install") as caught:
        run(recipe_in(shared, tmp_path, {"data.source": source, **overrides}))
    assert "\n" not in str(caught.value)


def test_an_ordinary_network_is_trained_as_it_is(shared, tmp_path):
    options = {"conversion.bits": None, "conversion.activations": "checkpoint", **LORA, "training.max_steps": 1}
    result = run(recipe_in(shared, tmp_path, options))
    assert "original_validation_loss" not in result.metrics
    base = AutoModelForCausalLM.from_pretrained(shared / "model")
    assert PeftModel.from_pretrained(base, str(result.directory / "adapter"))  # an ordinary adapter


def test_a_run_whose_loss_is_not_a_number_is_not_finished(shared, tmp_path):
    """transformers' own logs leave such losses out, and would show 0."""
    options = {"conversion.bits": None, "conversion.activations": "store", "training.learning_rate": 1e38}
    with pytest.raises(UserError, match=r"The training loss is (nan|inf) at step 3: .* must start again\."):
        run(
            recipe_in(
                shared,
                tmp_path,
                options | {"training.max_grad_norm": 0.0, "training.save_steps": 4, "training.eval_steps": 4},
            )
        )
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written.isdisjoint({"model", "metrics.json", "history.json"})


@pytest.mark.parametrize(("activations", "evaluations"), [("store", 1), ("checkpoint", 2), ("offload", 2)])
def test_an_ordinary_network_evaluates_layers_again_if_the_recipe_says_so(
    shared, tmp_path, activations, evaluations, monkeypatch
):
    monkeypatch.setattr(finetune_module, "train_to_end", lambda trainer, *_: trainer)
    options = {"conversion.bits": None, "conversion.activations": activations, **LORA}
    trainer = finetune(recipe_in(shared, tmp_path, options), console=Console(file=io.StringIO()))
    calls = []
    trainer.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    trainer.model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert len(calls) == evaluations


@pytest.mark.parametrize(
    ("asked", "states"),
    [
        (None, "auto:12"),
        pytest.param("int32", "int32:12", marks=pytest.mark.thorough),
        pytest.param("int64", "int64", marks=pytest.mark.thorough),
    ],
)
def test_a_saved_reversible_model_keeps_its_dynamics(shared, tmp_path, asked, states):
    dynamics = rf.Leapfrog(step_size=0.5)
    model = AutoModelForCausalLM.from_pretrained(shared / "model")
    rf.make_reversible(model, dynamics, states="auto:12")
    model.save_pretrained(tmp_path / "leapfrog")
    options = {"model.name": str(tmp_path / "leapfrog"), "model.tokenizer": str(shared / "model")}
    kept = {"conversion.bits": None, "conversion.states": asked, "training.max_steps": 1}
    result = run(recipe_in(shared, tmp_path, {**options, **kept}))
    trained = reversible_stack(rf.from_pretrained(result.directory / "model"))
    assert (trained.dynamics, str(trained.states)) == (dynamics, states)
    if asked:
        return
    with pytest.raises(UserError, match=r"is already reversible; set conversion\.bits to none"):
        run(recipe_in(shared, tmp_path, options), overwrite=True)
    assert (result.directory / "model").is_dir(), "a refused run discards nothing"


@pytest.mark.thorough
def test_a_resumed_run_needs_its_conversion_but_no_start_figures(shared, tmp_path):
    recipe = recipe_in(shared, tmp_path, {"training.max_steps": 2, "conversion.states": "auto:12"})
    first = run(recipe)
    (first.directory / "start.json").unlink()
    (first.directory / "metrics.json").unlink()
    again = run(recipe, resume=True)
    for figure in ("original_validation_loss", "initial_validation_loss", "validation_loss"):
        assert again.metrics[figure] == first.metrics[figure]
    assert {str(reversible_stack(rf.from_pretrained(one.directory / "model")).states) for one in (first, again)} == {
        "auto:12"
    }
    (first.directory / "metrics.json").unlink()
    file = first.directory / "conversion" / "update_predictors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"update_predictors\.safetensors is damaged .*; restore it from a copy, or give"
    ):
        run(recipe, resume=True)


def test_a_run_does_not_replace_its_own_model(shared, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"The run would replace its model\.name .*/run/model in "):
        run(recipe_in(shared, tmp_path, {"model.name": str(tmp_path / "run" / "model")}), overwrite=True)


def test_a_run_directory_is_refused_before_the_model_is_loaded_and_discarded_after(shared, tmp_path, monkeypatch):
    run_directory = RunDirectory(tmp_path / "run")
    recipe = recipe_in(shared, tmp_path)
    with run_directory as earlier:
        begin_in_directory(earlier, recipe, None, overwrite=False)
        earlier.model.mkdir()

    def fail(recipe):
        raise ValueError("cannot be loaded")

    monkeypatch.setattr(finetune_module, "load_model", fail)
    with pytest.raises(UserError, match="already holds a run"):
        run(recipe)
    with pytest.raises(ValueError, match="cannot be loaded"):
        run(recipe, overwrite=True)
    assert run_directory.model.is_dir()


@pytest.mark.thorough
def test_a_refused_run_overwrites_nothing_and_what_a_resumed_run_reads_must_not_change(
    shared, tmp_path, interrupted_at
):
    """An adapter that fits no module is refused after the conversion, when the new run has begun."""
    shutil.copytree(shared / "model", tmp_path / "model")
    options = {**LORA, "model.name": str(tmp_path / "model"), "training.max_steps": 2}
    recipe = recipe_in(shared, tmp_path, options)
    interrupted_at(1)
    directory = run(recipe).directory
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"PEFT refuses the adapter"):
        run(recipe_in(shared, tmp_path, options | {"adapter.target_modules": "nothing"}), overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before
    for name, words in {
        "config.json": "configuration of the model",
        "model.safetensors": "weights of the model",
        "tokenizer_config.json": "tokenizer, with its chat template,",
    }.items():
        file = tmp_path / "model" / name
        content = file.read_bytes()
        if name == "model.safetensors":
            changed = {key: weight * 1.5 for key, weight in load_file(file).items()}
            save_file(changed, file, {"format": "pt"})
        else:
            file.write_bytes(content + b" ")
        with pytest.raises(UserError, match=f"The {words} of the run in .* changed after checkpoint-1 was saved"):
            run(recipe, resume=True)
        file.write_bytes(content)
    interrupted_at(-1)
    assert run(recipe, resume=True).finished


def test_resuming_with_other_data_is_refused(shared, tmp_path):
    run(recipe_in(shared, tmp_path, {"training.max_steps": 1}))
    with pytest.raises(UserError, match=r"was started with data\.block_length 32, not 16"):
        run(recipe_in(shared, tmp_path, {"data.block_length": 16}), resume=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"output": ""}, "names no run directory"),
        ({"model.name": ""}, "names no model"),
        ({"data.source": ""}, "names no data"),
        ({"data.block_length": 4096}, "reads at most 2048; shorten it"),
        ({"conversion.bits": None}, "cannot rebuild activations; set conversion.bits"),
        (
            {"conversion.bits": None, "conversion.activations": "store", "annealing.steps": 2},
            "annealing.steps needs a conversion",
        ),
        ({"training.arguments.gradient_checkpointing": True}, "set conversion.activations to checkpoint instead"),
        ({"training.arguments.max_steps_": 1}, "has no 'max_steps_'"),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_is_written(shared, tmp_path, overrides, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as caught:
        run(recipe_in(shared, tmp_path, overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conversion.bits": 9.0}, "from 0 to 8"),
        ({**LORA, "adapter.target_modules": "nothing"}, "PEFT refuses the adapter section"),
        ({"data.source": "SHORT"}, "does not fill"),
    ],
)
def test_what_shows_later_is_named_too(shared, tmp_path, overrides, message):
    (tmp_path / "short.txt").write_text("a\nb\n")
    overrides = {name: str(tmp_path / "short.txt") if value == "SHORT" else value for name, value in overrides.items()}
    with pytest.raises(UserError, match=message) as caught:
        run(recipe_in(shared, tmp_path, overrides))
    assert "\n" not in str(caught.value)


def test_without_distillation_the_loss_may_be_the_models_own(shared, tmp_path):
    results = {}
    for head in ("chunked", "own"):
        overrides = {"loss.head": head, "output": str(tmp_path / head)}
        results[head] = run(recipe_in(shared, tmp_path, overrides))
    chunked, own = results.values()
    assert chunked.metrics["validation_loss"] == pytest.approx(own.metrics["validation_loss"], rel=1e-4)
    assert any(not torch.equal(weights(chunked)[name], value) for name, value in weights(own).items())


def test_the_working_set_can_be_made_smaller_without_another_result(shared, tmp_path):
    results = {}
    for name, in_backward in {"in": True, "after": False}.items():
        overrides = {
            "training.optimizer_in_backward": in_backward,
            "training.max_grad_norm": 0,
            "training.mlp_tile": 24,
            "output": str(tmp_path / name),
        }
        results[name] = weights(run(recipe_in(shared, tmp_path, overrides)))
    assert all(torch.equal(results["in"][name], results["after"][name]) for name in results["after"])
