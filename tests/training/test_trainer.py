"""transformers' Trainer: checkpoints belong to the network that wrote them, and cards say what it is."""

import functools
import json
import logging
import shutil

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer import PushInProgress
from trl import SFTConfig, SFTTrainer

import revformers as rf
from revformers.checkpoints.adapter_base import DESCRIPTION, PREDICTORS
from revformers.checkpoints.card import SECTION
from revformers.errors import ModelFilesError
from revformers.head.teacher import FrozenCopy
from revformers.models.parts import reversible_stack
from revformers.training.trainer import WatchHeadLoss
from tests.tiny_models import tiny
from tests.tiny_trainers import (
    DYNAMICS,
    IDS,
    arguments,
    converted,
    dataset,
    logits,
    make,
    ordinary,
    token_rows,
    tokenizer,
    with_adapter,
)

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def trainer_of(model, tmp_path, **options):
    return Trainer(model, arguments(tmp_path, **options), train_dataset=token_rows())


def saving_in_shards(model):
    save = model.save_pretrained
    model.save_pretrained = lambda *others, **options: save(*others, **options | {"max_shard_size": "20KB"})
    return model


FILES = pytest.mark.parametrize(
    ("way", "prepare"),
    [("memory", lambda model: model), ("converted", saving_in_shards), ("converted", with_adapter)],
    ids=["full", "shards", "lora"],
)


@FILES
def test_a_resumed_run_ends_as_one_that_went_through(way, prepare, folder, tmp_path):
    through = trainer_of(prepare(make(way, folder)), tmp_path, **STEPS)
    through.train()
    files = {file.name for file in (tmp_path / "run/checkpoint-2").iterdir()}
    assert ("model.reversible-00001-of-" in " ".join(files)) == (prepare is saving_in_shards)
    resumed = trainer_of(prepare(make(way, folder)), tmp_path / "other", **STEPS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (through, resumed)
    ]
    assert losses[0] == losses[1]
    for (name, own), other in zip(through.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(own, other), name


def test_weights_are_read_from_the_checkpoint(folder, tmp_path):
    """The control of the test before: with the checkpoint's weights left out, the end is another one."""
    trainer_of(make("memory", folder), tmp_path, **STEPS).train()
    resumed = trainer_of(make("memory", folder), tmp_path / "other", **STEPS)
    resumed._load_from_checkpoint = lambda *others: None
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert not torch.equal(logits(resumed.model), logits(rf.from_pretrained(tmp_path / "run/checkpoint-4")))


@FILES
def test_the_best_weights_come_back_at_the_end(way, prepare, folder, tmp_path):
    # The loss falls, so that the first checkpoint is the best where more is better.
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    model = prepare(make(way, folder))
    trainer = Trainer(
        model, arguments(tmp_path, **STEPS | options), train_dataset=token_rows(), eval_dataset=token_rows(2)
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    again = rf.load_adapter if prepare is with_adapter else rf.from_pretrained
    best, last = (logits(again(tmp_path / "run" / name)) for name in ("checkpoint-2", "checkpoint-4"))
    assert not torch.equal(best, last)
    assert torch.equal(logits(model), best)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_weights_that_a_family_saves_under_other_names_come_back_too(kind, tmp_path):
    """Experts are one tensor in the model and one each in the files."""

    def model():
        return rf.make_reversible(tiny(kind), DYNAMICS)

    through = trainer_of(model(), tmp_path, **STEPS)
    through.train()
    resumed = trainer_of(model(), tmp_path / "other", **STEPS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    for (name, own), other in zip(through.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(own, other), name


def test_only_weights_that_are_missing_are_reported(tmp_path, caplog, monkeypatch):
    """A tied weight is in the file under another name."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer = trainer_of(
        rf.make_reversible(tiny("LlamaForCausalLM", tie_word_embeddings=True), DYNAMICS), tmp_path, **STEPS
    )
    trainer.train()
    checkpoint = tmp_path / "run/checkpoint-2"
    trainer._load_from_checkpoint(str(checkpoint))
    assert "missing keys" not in caplog.text
    (file,) = checkpoint.glob("*.safetensors")
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file)
    trainer._load_from_checkpoint(str(checkpoint))
    assert "missing keys in the checkpoint model loaded: ['model.norm.weight']" in caplog.text


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "qwen3_moe"])
def test_weights_of_several_types_come_back_in_their_own(kind, tmp_path):
    """A frozen network in bfloat16 under a head in float32, which the configuration says nothing of."""

    def model():
        made = rf.make_reversible(tiny(kind).bfloat16(), DYNAMICS)
        made.lm_head.float()
        return made

    source = model()
    with torch.no_grad():
        source.lm_head.weight.add_(1e-4)
    source.save_pretrained(tmp_path)
    target = model()
    assert not torch.equal(target.lm_head.weight, source.lm_head.weight)
    trainer_of(target, tmp_path / "run")._load_from_checkpoint(str(tmp_path))
    for (name, own), other in zip(source.named_parameters(), target.named_parameters(), strict=True):
        assert torch.equal(own, other[1]), name


def test_a_model_that_its_configuration_does_not_describe_is_resumed(folder, tmp_path):
    def model():
        made = make("memory", folder)
        made.value_head = torch.nn.Linear(4, 1)
        return made

    source, target = model(), model()
    source.save_pretrained(tmp_path / "checkpoint")
    trainer_of(target, tmp_path)._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert torch.equal(source.value_head.weight, target.value_head.weight)


def test_a_compiled_model_is_resumed(folder, tmp_path):
    source, target = make("trained", folder), make("memory", folder)
    source.save_pretrained(tmp_path / "checkpoint")
    trainer_of(torch.compile(target, backend="eager"), tmp_path)._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert torch.equal(source.lm_head.weight, target.lm_head.weight)


def test_a_damaged_checkpoint_is_named(folder, tmp_path):
    trainer_of(make("memory", folder), tmp_path, **STEPS | {"max_steps": 2}).train()
    checkpoint = tmp_path / "run/checkpoint-2"
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ModelFilesError, match=r"config\.json is damaged"):
        trainer_of(make("memory", folder), tmp_path, **STEPS).train(resume_from_checkpoint=str(checkpoint))


@FILES
def test_a_file_of_weights_that_is_cut_short_is_named(way, prepare, folder, tmp_path):
    trainer_of(prepare(make(way, folder)), tmp_path, **STEPS | {"max_steps": 2}).train()
    checkpoint = tmp_path / "run/checkpoint-2"
    file = max(checkpoint.glob("*model*.safetensors"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    other = trainer_of(prepare(make(way, folder)), tmp_path, **STEPS)
    with pytest.raises(ModelFilesError, match=rf"{file.name} is damaged or incomplete .*; resume from another"):
        other.train(resume_from_checkpoint=str(checkpoint))


def network(kind, folder):
    if kind == "converted":
        return converted(folder)
    model = LlamaForCausalLM.from_pretrained(ordinary(folder / "ordinary"))
    if kind != "ordinary":
        rf.make_reversible(model, {"blend": DYNAMICS, "other blend": rf.BlendedMidpoint(0.5)}[kind])
    return model


@pytest.fixture(scope="module")
def checkpoints(folder):
    made = {}
    for kind in ("ordinary", "blend", "other blend", "converted"):
        trainer_of(network(kind, folder), folder / kind, **STEPS | {"max_steps": 2}).train()
        made[kind] = str(folder / kind / "run/checkpoint-2")
    return made


@pytest.mark.parametrize("checkpoint", ["ordinary", "blend", "other blend", "converted"])
@pytest.mark.parametrize("kind", ["ordinary", "blend", "converted"])
def test_a_checkpoint_is_resumed_by_its_own_network_only(kind, checkpoint, folder, checkpoints, tmp_path):
    trainer = trainer_of(network(kind, folder), tmp_path, **STEPS)
    before = logits(trainer.model)
    if kind == checkpoint:
        trainer.train(resume_from_checkpoint=checkpoints[checkpoint])
        return
    with pytest.raises(ValueError, match=r"is that of .*, and the model to train is ") as caught:
        trainer.train(resume_from_checkpoint=checkpoints[checkpoint])
    sentence = str(caught.value)
    saved, own = sentence.split(", and the model to train is ")
    for name, words in ((checkpoint, saved), (kind, own)):
        assert ("ordinary network" in words) == (name == "ordinary")
        assert ("with update predictors" in words) == (name == "converted")
    assert saved.partition("is that of ")[2] != own.partition(";")[0]
    assert ("they differ in" in sentence) == ("ordinary" not in (kind, checkpoint))
    assert torch.equal(logits(trainer.model), before)


def test_blends_that_the_recurrence_does_not_show_are_named(folder, tmp_path):
    model, other = (
        rf.make_reversible(make("unnamed", folder), rf.BlendedMidpoint(blends))
        for blends in ([0.25, 0.5, 0.5], [0.5] * 3)
    )
    trainer_of(model, tmp_path, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="they differ in blend;"):
        trainer_of(other, tmp_path).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))


def test_a_checkpoint_of_a_later_version_is_refused(folder, tmp_path):
    trainer_of(make("memory", folder), tmp_path, save_strategy="steps", save_steps=1).train()
    config = tmp_path / "run/checkpoint-1/config.json"
    values = json.loads(config.read_text())
    values["revformers"]["dynamics"] = {"name": "of_tomorrow"}
    config.write_text(json.dumps(values))
    with pytest.raises(ModelFilesError, match=r"of_tomorrow.*update revformers"):
        trainer_of(make("memory", folder), tmp_path).train(resume_from_checkpoint=str(config.parent))


@FILES
def test_every_save_pushes_what_loads_again(way, prepare, folder, tmp_path, monkeypatch):
    pushed = []

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None, **others):
        pushed.append(tmp_path / f"pushed {len(pushed)}")
        shutil.copytree(folder_path, pushed[-1], ignore=shutil.ignore_patterns(*(ignore_patterns or ())))

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **others: type("Repository", (), {"repo_id": name}))
    monkeypatch.setattr(PushInProgress, "is_done", lambda self: True)
    monkeypatch.setattr(PushInProgress, "wait_until_done", lambda self: None)
    options = {"push_to_hub": True, "hub_model_id": "someone/model", "hub_strategy": "every_save"}
    model = prepare(make(way, folder))
    trainer_of(model, tmp_path, **STEPS | options | {"max_steps": 2}).train()
    load = rf.load_adapter if prepare is with_adapter else rf.from_pretrained
    assert torch.equal(logits(load(pushed[0])), logits(model))
    if prepare is with_adapter:
        assert (pushed[0] / DESCRIPTION).is_file()
        assert (pushed[0] / PREDICTORS).is_file() == (way == "converted")


def test_label_smoothing_shifts_the_labels_as_for_the_ordinary_model(folder, tmp_path):
    losses = []
    for model in (network("ordinary", folder), rf.make_reversible(network("ordinary", folder), rf.Residual(), "store")):
        trainer = trainer_of(model, tmp_path, label_smoothing_factor=0.1)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    plain = trainer_of(network("ordinary", folder), tmp_path).train().training_loss
    assert losses[0] != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("prepare", [lambda model: model, with_adapter], ids=["full", "lora"])
@pytest.mark.parametrize(("kind", "config"), [(Trainer, TrainingArguments), (SFTTrainer, SFTConfig)])
def test_the_card_of_a_trainer_says_once_that_the_model_is_reversible(kind, config, prepare, folder, tmp_path):
    model = prepare(make("converted", folder))
    rows = dataset("sft") if kind is SFTTrainer else Dataset.from_list(token_rows())
    trainer = kind(model, arguments(tmp_path, config), train_dataset=rows, processing_class=tokenizer())
    trainer.train()
    card, adapter = tmp_path / "run/README.md", prepare is with_adapter
    for action in ("save_model", "create_model_card", "create_model_card", "save_model", "create_model_card"):
        getattr(trainer, action)()
        text = card.read_text()
        assert text.count(reversible_stack(model).dynamics.recurrence) == 1
        assert text.count(f"{'The base of this adapter' if adapter else 'This'} is not the ordinary network") == 1
        assert ("revformers.load_adapter(" in text) == adapter
        assert {"revformers", "reversible"} <= set(ModelCard.load(card).data.tags)
    assert ("trl" in text) == (kind is SFTTrainer)


def test_the_card_of_an_ordinary_model_is_left_as_its_trainer_writes_it(folder, tmp_path):
    trainer = trainer_of(network("ordinary", folder), tmp_path)
    trainer.train()
    trainer.create_model_card()
    assert "reversible" not in (tmp_path / "run/README.md").read_text()


@pytest.mark.parametrize("prepare", [lambda model: model, with_adapter], ids=["full", "lora"])
def test_a_card_that_a_user_wrote_stays(prepare, folder, tmp_path):
    trainer = trainer_of(prepare(make("memory", folder)), tmp_path)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/README.md").write_text("# Mine")
    if prepare is with_adapter:
        trainer.save_model()  # PEFT writes metadata and its version into it
        text = (tmp_path / "run/README.md").read_text()
        assert "# Mine" in text
        assert SECTION not in text
        return
    with pytest.warns(UserWarning, match="is kept; delete it"):
        trainer.save_model()
    assert (tmp_path / "run/README.md").read_text() == "# Mine"
    assert json.loads((tmp_path / "run/config.json").read_text())["revformers"]


TEACHER = "gave the model, so its teacher would have no effect; use transformers' Trainer without"


def distilled(folder):
    model = network("ordinary", folder)
    rf.set_head_loss(model, rf.HeadLoss(0.5, 0.5, teacher=FrozenCopy(model)))
    return model


def own_loss(outputs, labels, num_items_in_batch=None):
    return ForCausalLMLoss(outputs.logits, labels, outputs.logits.shape[-1], num_items_in_batch)


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("label_smoothing_factor", {"label_smoothing_factor": 0.1}),
        ("label_smoothing_factor", {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}),
        ("compute_loss_func", {"compute_loss_func": own_loss}),
    ],
)
def test_a_loss_that_would_drop_the_teacher_is_refused(folder, tmp_path, cause, options):
    options = dict(options)
    model, function = distilled(folder), options.pop("compute_loss_func", None)
    before = model.lm_head.weight.clone()
    trainer = Trainer(model, arguments(tmp_path, **options), train_dataset=token_rows(), compute_loss_func=function)
    with pytest.raises(ValueError, match=f"^{cause} replaces the loss that .* {TEACHER}") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert torch.equal(model.lm_head.weight, before)
    assert not any(isinstance(one, WatchHeadLoss) for one in trainer.callback_handler.callbacks)


@pytest.mark.parametrize("callbacks", [[], [rf.ReversibleCallback]])
def test_trl_would_drop_the_teacher_with_a_head_of_its_own(folder, tmp_path, callbacks):
    model = rf.make_reversible(distilled(folder), DYNAMICS) if callbacks else distilled(folder)
    trainer = SFTTrainer(
        model,
        args=arguments(tmp_path, SFTConfig),
        train_dataset=dataset("sft"),
        processing_class=tokenizer(),
        callbacks=[one() for one in callbacks],
    )
    with pytest.raises(ValueError, match=f"^The loss of the SFTTrainer replaces the loss that .* {TEACHER}"):
        trainer.train()


def test_a_teacher_is_used_where_the_model_computes_the_loss(folder, tmp_path):
    model = distilled(folder)
    assert rf.verify_gradients(rf.make_reversible(model, DYNAMICS), {"input_ids": IDS, "labels": IDS}).bit_exact
    assert trainer_of(model, tmp_path).train().global_step == 1


def test_a_weight_of_the_cross_entropy_that_would_have_no_effect_is_refused(folder, tmp_path):
    model = network("ordinary", folder)
    rf.set_head_loss(model, rf.HeadLoss(0.5))
    with pytest.raises(ValueError, match="so its weight of the cross-entropy would have no effect; "):
        trainer_of(model, tmp_path, label_smoothing_factor=0.1).train()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_model_that_model_init_makes_when_training_begins_is_watched(folder, tmp_path, smoothing):
    trainer = Trainer(
        args=arguments(tmp_path, label_smoothing_factor=smoothing),
        train_dataset=token_rows(),
        model_init=lambda: distilled(folder),
    )
    before = trainer.model
    if smoothing:
        with pytest.raises(ValueError, match=f"^label_smoothing_factor replaces the loss that .* {TEACHER}"):
            trainer.train()
    else:
        assert trainer.train().global_step == 1
    assert trainer.model is not before


@pytest.mark.parametrize(
    ("make_model", "watched"), [(distilled, True), (functools.partial(network, "ordinary"), False)]
)
def test_only_a_loss_that_can_be_dropped_is_watched_and_nothing_stays_on_the_model(
    folder, tmp_path, make_model, watched
):
    class See(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.extend([*vars(kwargs["model"]), *trainer.callback_handler.callbacks])

    seen = []
    trainer = trainer_of(make_model(folder), tmp_path)
    attributes = set(vars(trainer.model))
    trainer.add_callback(See())
    trainer.train()
    assert ("_head_loss_observer" in seen) == watched
    assert any(isinstance(one, WatchHeadLoss) for one in seen) == watched
    assert not [name for name in vars(trainer.model).keys() - attributes if "head_loss" in name]
    assert not any(isinstance(one, WatchHeadLoss) for one in trainer.callback_handler.callbacks)


def test_a_plain_head_loss_only_saves_memory_so_other_losses_take_its_place(folder, tmp_path):
    losses = []
    for chunked in (False, True):
        model = network("ordinary", folder)
        rf.set_head_loss(model, rf.HeadLoss() if chunked else None)
        losses.append(trainer_of(model, tmp_path, label_smoothing_factor=0.1).train().training_loss)
    assert losses[0] == losses[1]


NO_LOGITS = "a model with a head loss does not compute"


def with_metrics(model, tmp_path, kind=Trainer, config=TrainingArguments, **options):
    rows = dataset("sft") if kind is SFTTrainer else token_rows()
    extra = {"processing_class": tokenizer()} if kind is SFTTrainer else {}
    return kind(
        model,
        args=arguments(tmp_path, config, **options),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda both: {"width": both.predictions.shape[-1]},
        **extra,
    )


def test_metrics_of_a_model_without_logits_are_refused_before_training(folder, tmp_path):
    model = network("ordinary", folder)
    rf.set_head_loss(model, rf.HeadLoss())
    before = model.lm_head.weight.clone()
    trainer = with_metrics(model, tmp_path, eval_strategy="steps", eval_steps=1)
    for call in (trainer.train, trainer.evaluate, lambda: trainer.predict(token_rows())):
        with pytest.raises(ValueError, match=NO_LOGITS) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert torch.equal(model.lm_head.weight, before)
    assert (
        trainer.predict([{"input_ids": row["input_ids"]} for row in token_rows()]).predictions.shape[-1]
        == model.config.vocab_size
    )
    rf.set_head_loss(model, None)
    assert trainer.evaluate()["eval_width"] == model.config.vocab_size


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [(Trainer, TrainingArguments, {"label_smoothing_factor": 0.1}), (SFTTrainer, SFTConfig, {})],
)
def test_metrics_are_computed_where_the_trainer_asks_for_logits(folder, tmp_path, kind, config, options):
    model = network("ordinary", folder)
    rf.set_head_loss(model, rf.HeadLoss())
    trainer = with_metrics(model, tmp_path, kind, config, eval_strategy="steps", eval_steps=1, **options)
    trainer.train()
    assert trainer.state.log_history[-2]["eval_width"] == model.config.vocab_size


def test_several_gpus_in_one_process_are_refused(folder, tmp_path, monkeypatch):
    trainer = trainer_of(make("memory", folder), tmp_path)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"all 2 GPUs .* torchrun"):
        trainer.train()
