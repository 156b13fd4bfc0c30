import dataclasses
import io
import shutil

import pytest
import torch
from rich.console import Console
from transformers import TrainingArguments
from trl import SFTConfig

import revformers as rf
from revformers.errors import UserError
from revformers.training import finetune as finetune_module
from revformers.training.argument_table import ARGUMENTS, OPTIMIZERS
from revformers.training.finetune import finetune
from revformers.training.pretrain import pretrain
from revformers.training.recipe import TrainerSection, TrainingSection
from revformers.training.recipe_file import parse_yaml
from revformers.training.trainer_arguments import _check_devices, check_training, trainer_arguments
from tests.training.tiny import tiny_recipe
from tests.training.tiny_finetune import COLUMNS, INSTRUCTIONS, tiny_finetune_recipe, write_records


def arguments_of(tmp_path, section, kind=TrainingArguments, **fixed):
    further = {"use_cpu": True, **section.arguments}
    section = dataclasses.replace(section, arguments=further)
    return trainer_arguments(section, str(tmp_path), "dynamics.activations", kind, **fixed)


def test_every_field_reaches_the_trainer(tmp_path):
    section = TrainingSection(max_steps=3, precision="bfloat16", arguments={"adam_epsilon": 1e-7})
    arguments = arguments_of(tmp_path, section)
    for field in dataclasses.fields(TrainerSection):
        assert getattr(arguments, field.name) == getattr(section, field.name)
    assert (arguments.adam_epsilon, arguments.bf16, arguments.fp16) == (1e-7, True, False)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"adam_epsilo": 1}, "has no 'adam_epsilo'; did you mean 'adam_epsilon'"),
        ({"output_dir": "x"}, "cannot set 'output_dir'; set output instead"),
        ({"fp16": True}, "set training.precision instead"),
        ({"num_train_epochs": 2}, "set training.max_steps instead: the epochs times the training sequences"),
        ({"gradient_checkpointing": True}, "set dynamics.activations to checkpoint instead"),
        (
            {"label_smoothing_factor": 0.1},
            "leave it out: the Trainer would compute that loss itself, without a teacher",
        ),
        ({"learning_rate": 1e-3}, "set training.learning_rate instead"),
        ({"evaluation_strategy": "no"}, "has no 'evaluation_strategy'; set training.eval_steps"),
        ({"group_by_length": True}, "a resumed run would read the data in another order"),
        ({"jit_mode_eval": True}, "transformers 5 no longer has it"),
        ({"pad_to_multiple_of": 8}, "only for prompts and conversations"),
        ({"save_strategy": "best"}, "save_strategy takes steps, no, not 'best'"),
        ({"train_sampling_strategy": "group_by_length"}, "takes random, sequential, not 'group_by_length'"),
        ({"log_level": "shout"}, "takes debug, detail, info, warning, error, critical, passive, not 'shout'"),
        ({"adam_epsilon": "small"}, "adam_epsilon takes float, not 'small'"),
        ({"use_cpu": "yes"}, "use_cpu takes bool, not 'yes'"),
        ({"neftune_noise_alpha": [5]}, r"neftune_noise_alpha takes float or NoneType, not \[5\]"),
        ({"adam_epsilon": -1.0}, "The Trainer refuses the training section: Invalid epsilon value: -1.0"),
        ({"lr_scheduler_kwargs": {"zig": 1}}, "The Trainer refuses the training section: .*'zig'"),
        ({"optim_args": "zig"}, "The Trainer refuses the training section: "),
        ({"optim": "galore_adamw"}, "optim takes adamw_torch_fused, .*, not 'galore_adamw'"),
        ({"report_to": "neptune"}, "report_to names neptune, which is not installed"),
        ({"report_to": ["zig"]}, "zig is not supported, only"),
        ({"dataloader_persistent_workers": True}, "refuses the training section: persistent_workers .*num_workers > 0"),
        ({"dataloader_multiprocessing_context": "fork"}, "refuses the training section: multiprocessing_context can "),
        ({"data_seed": -1}, "training.arguments.data_seed must be 0 to 4294967295, not -1"),
        ({"tf32": True}, "requires Ampere or a newer GPU"),
        ({"load_best_model_at_end": True, "save_strategy": False}, "every evaluation; leave out .*save_strategy"),
        ({"load_best_model_at_end": True}, "a checkpoint of every evaluation; .* instead of 4 and 3"),
        (TrainingSection(lr_scheduler_type="zigzag"), "The Trainer refuses the training section: "),
        (TrainingSection(optimizer_in_backward=True), "set training.max_grad_norm to 0"),
        (TrainingSection(precision="float16"), "float16 needs a GPU"),
    ],
)
def test_what_a_run_cannot_take_is_one_sentence(tmp_path, section, message):
    if isinstance(section, dict):
        section = TrainingSection(eval_steps=3, save_steps=4, arguments=section)
    with pytest.raises(UserError, match=message) as caught:
        arguments_of(tmp_path, section)
    assert "\n" not in str(caught.value)


NO = [name for name, one in ARGUMENTS.items() if "no" in one.values]


@pytest.mark.parametrize("name", NO)
@pytest.mark.parametrize("word", ["no", "No", "'no'", "off", "false"])
def test_the_word_no_without_quotes_is_false_in_yaml_and_means_no(tmp_path, name, word):
    given = parse_yaml(f"{name}: {word}")
    assert getattr(arguments_of(tmp_path, TrainingSection(arguments=given)), name) == "no"


@pytest.mark.parametrize("word", ["yes", "true", "0"])
def test_only_false_means_no(tmp_path, word):
    with pytest.raises(UserError, match=r"save_strategy takes steps, no, not '(True|0)'"):
        arguments_of(tmp_path, TrainingSection(arguments=parse_yaml(f"save_strategy: {word}")))


@pytest.mark.parametrize("name", [name for name, one in ARGUMENTS.items() if one.remedy])
def test_every_refusal_is_one_sentence_before_the_form_of_the_data_is_known(tmp_path, name):
    with pytest.raises(UserError, match=f"training.arguments cannot set '{name}'; ") as caught:
        check_training(TrainingSection(arguments={name: None}), str(tmp_path), "conversion.activations")
    assert "{" not in str(caught.value)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_of_the_table_can_be_made(tmp_path, optimizer):
    assert arguments_of(tmp_path, TrainingSection(arguments={"optim": optimizer})).optim == optimizer


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="refuses the training section: You need to install `bitsandbytes`"):
        arguments_of(tmp_path, TrainingSection(arguments={"optim": "adamw_8bit"}))


def test_arguments_of_prompts_wait_for_the_form_of_the_data(tmp_path):
    section = TrainingSection(arguments={"use_cpu": True, "pad_to_multiple_of": 8, "truncation_mode": "keep_end"})
    check_training(section, str(tmp_path), "conversion.activations")
    arguments = arguments_of(tmp_path, section, SFTConfig, max_length=16)
    assert (arguments.pad_to_multiple_of, arguments.truncation_mode, arguments.max_length) == (8, "keep_end", 16)
    wrong = dataclasses.replace(section, arguments={"use_cpu": True, "truncation_mode": "zig"})
    with pytest.raises(UserError, match="truncation_mode takes keep_start, keep_end, not 'zig'"):
        arguments_of(tmp_path, wrong, SFTConfig)


def test_an_argument_of_a_later_transformers_is_passed_on_with_a_warning(tmp_path):
    @dataclasses.dataclass
    class Later(TrainingArguments):
        warp: float = 0.0

    with pytest.warns(UserWarning, match=r"does not know training\.arguments\.warp"):
        assert arguments_of(tmp_path, TrainingSection(arguments={"warp": 2.0}), Later).warp == 2.0


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match=r"all 2 GPUs .* torchrun"):
        arguments_of(tmp_path, TrainingSection())


def test_processes_without_gpus_find_each_other_or_are_refused(tmp_path, monkeypatch):
    """Without `use_cpu` accelerate lets every launched process train on its own."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    arguments = trainer_arguments(TrainingSection(), str(tmp_path), "dynamics.activations", TrainingArguments)
    assert arguments.use_cpu
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="but RANK and MASTER_ADDR are not set"):  # a scheduler set it; nobody answers
        trainer_arguments(TrainingSection(), str(tmp_path), "dynamics.activations", TrainingArguments)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="2 processes were launched, but each would train without the others"):
        _check_devices(arguments)


def test_a_rehearsal_changes_no_random_numbers(tmp_path):
    before = torch.get_rng_state()
    arguments_of(tmp_path, TrainingSection())
    assert torch.equal(torch.get_rng_state(), before)


HARMLESS = {
    "average_tokens_across_devices": False,
    "batch_eval_metrics": True,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 1,
    "ddp_broadcast_buffers": True,
    "ddp_bucket_cap_mb": 1,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
    "ddp_timeout": 60,
    "debug": "underflow_overflow",
    "do_eval": True,
    "do_predict": True,
    "do_train": True,
    "eval_accumulation_steps": 1,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "include_for_metrics": ["loss", "inputs"],
    "log_level": "error",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "logging_first_step": False,
    "logging_nan_inf_filter": True,
    "prediction_loss_only": False,
    "project": "any",
    "remove_unused_columns": True,
    "run_name": "any",
    "save_strategy": "no",
    "skip_memory_metrics": False,
    "torch_empty_cache_steps": 1,
    "use_cpu": True,
}
"""Values with which a run ends with the same weights, to the bit."""

CHANGING = {
    "adam_epsilon": 1e-3,
    "data_seed": 3,
    "eval_on_start": True,
    "load_best_model_at_end": True,
    "lr_scheduler_kwargs": {"num_cycles": 0.7},
    "neftune_noise_alpha": 5.0,
    "optim": "ademamix",
    "optim_args": "alpha=3.0",
    "train_sampling_strategy": "sequential",
}
"""Values with which a run ends with other weights, and a resumed run with the same ones."""

NEEDED = {
    "load_best_model_at_end": {"training.learning_rate": 0.3},  # the last model is not the best one
    "optim_args": {"training.arguments.optim": "ademamix"},
}
"""What else a run needs for an argument to change its weights."""

PROMPTS = {"shuffle_dataset": True, "truncation_mode": "keep_end"}
"""The same as CHANGING, for prompts."""

PROMPTS_HARMLESS = {"dataset_num_proc": 1}
"""The same as HARMLESS, for prompts."""

PADDING = {"pad_to_multiple_of": 8}
"""What changes nothing but shapes, and so at most the rounding."""

ELSEWHERE = {
    "ddp_backend",  # only with several processes
    "full_determinism",  # a switch of the whole process
    "report_to",  # needs packages
    "tf32",  # needs a GPU
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
}


def weights(result):
    return rf.from_pretrained(result.directory / "model").state_dict()


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def as_options(arguments):
    return {f"training.arguments.{name}": value for name, value in arguments.items()}


def test_every_argument_that_is_passed_on_is_tried():
    passed = {name for name, one in ARGUMENTS.items() if not one.remedy}
    assert (
        passed
        == HARMLESS.keys() | CHANGING.keys() | PROMPTS.keys() | PROMPTS_HARMLESS.keys() | PADDING.keys() | ELSEWHERE
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The function that returns the weights after two steps of a run with some options; it makes each run once."""
    folder, results = tmp_path_factory.mktemp("runs"), {}

    def train(options, run=pretrain, make_recipe=tiny_recipe):
        key = repr((run, sorted(options.items())))
        if key not in results:
            steps = {
                f"training.{name}": number for name, number in (("max_steps", 2), ("eval_steps", 1), ("save_steps", 1))
            }
            recipe = make_recipe(folder, {**steps, **options, "output": str(folder / f"run-{len(results)}")})
            results[key] = weights(run(recipe, console=Console(file=io.StringIO())))
        return results[key]

    return train


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHANGING)
def test_each_argument_that_changes_a_run_does(trained, name):
    needed = NEEDED.get(name, {})
    assert not equal(trained(needed | as_options({name: CHANGING[name]})), trained(needed))


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*PROMPTS, *PROMPTS_HARMLESS])
def test_each_argument_of_prompts_does_what_is_said(trained, tmp_path_factory, name):
    source = write_records(tmp_path_factory.getbasetemp() / "records.json", INSTRUCTIONS)
    options = {"data.source": str(source), "data.columns": COLUMNS, "data.block_length": 22}
    argument = as_options({name: (PROMPTS | PROMPTS_HARMLESS)[name]})
    with_it, plain = (trained(options | one, finetune, tiny_finetune_recipe) for one in (argument, {}))
    assert equal(with_it, plain) == (name in PROMPTS_HARMLESS)


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", [{}, PADDING])
def test_padding_fills_batches_up_to_a_multiple(tmp_path, monkeypatch, arguments):
    widths = []

    def look(trainer, *_):
        widths.extend(batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader())
        return "stopped"

    monkeypatch.setattr(finetune_module, "train_to_end", look)
    options = {"data.source": str(write_records(tmp_path / "records.json", INSTRUCTIONS)), "data.columns": COLUMNS}
    finetune(tiny_finetune_recipe(tmp_path, options | as_options(arguments)), console=Console(file=io.StringIO()))
    assert all(width % 8 == 0 for width in widths) == bool(arguments)


@pytest.mark.thorough
def test_what_has_no_effect_has_none(tmp_path):
    results = []
    for name, arguments in {"without": {}, "with": HARMLESS}.items():
        options = {"training.dataloader_num_workers": 1, "training.save_steps": 4, "output": str(tmp_path / name)}
        results.append(
            pretrain(tiny_recipe(tmp_path, options | as_options(arguments)), console=Console(file=io.StringIO()))
        )
    without, with_all = results
    assert equal(weights(without), weights(with_all))
    assert without.metrics["validation_loss"] == with_all.metrics["validation_loss"]


def resumed(run, recipe, step):
    """The weights of a run, and those of the same run resumed from a checkpoint."""
    result = run(recipe, console=Console(file=io.StringIO()))
    through = weights(result)
    (result.directory / "metrics.json").unlink()
    for name in ("model", f"checkpoint-{step}"):
        shutil.rmtree(result.directory / name)
    return through, weights(run(recipe, resume=True, console=Console(file=io.StringIO())))


@pytest.mark.thorough
def test_a_run_with_other_arguments_resumes_as_if_it_had_not_stopped(tmp_path):
    options = {"training.max_steps": 4, "training.eval_steps": 2, "training.save_steps": 2}
    recipe = tiny_recipe(tmp_path, options | as_options(CHANGING))
    through, again = resumed(pretrain, recipe, 4)
    assert equal(through, again)
    plain = pretrain(
        tiny_recipe(tmp_path, {**options, "output": str(tmp_path / "plain")}), console=Console(file=io.StringIO())
    )
    assert not equal(through, weights(plain))


@pytest.mark.thorough
def test_a_run_on_prompts_with_other_arguments_resumes_too(tmp_path):
    source = write_records(tmp_path / "records.json", INSTRUCTIONS)
    options = {"data.source": str(source), "data.columns": COLUMNS}
    recipe = tiny_finetune_recipe(
        tmp_path, options | as_options(PROMPTS | PROMPTS_HARMLESS | PADDING | {"neftune_noise_alpha": 5.0})
    )
    assert equal(*resumed(finetune, recipe, 4))


def test_noise_on_the_embeddings_leaves_rebuilt_gradients_exact(tmp_path):
    trained = []
    for activations in ("store", "rebuild"):
        options = {"dynamics.activations": activations, "output": str(tmp_path / activations)}
        recipe = tiny_recipe(tmp_path, options | as_options({"neftune_noise_alpha": 5.0}))
        trained.append(weights(pretrain(recipe, console=Console(file=io.StringIO()))))
    assert equal(*trained)


def test_mistakes_are_named_before_a_model_is_loaded(tmp_path):
    options = {"model.name": str(tmp_path / "nowhere"), "training.arguments.report_to": "neptune"}
    with pytest.raises(UserError, match="report_to names neptune, which is not installed"):
        finetune(tiny_finetune_recipe(tmp_path, options))
