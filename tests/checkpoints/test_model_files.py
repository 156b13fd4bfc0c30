import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_causal_lm, load_config, load_tokenizer
from revformers.checkpoints.model_files import UNREACHABLE, look_up
from revformers.cli.main import main
from revformers.errors import ModelFilesError
from revformers.models.parts import reversible_stack
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama

INDEX = r"model.safetensors.index(.reversible)?.json"


def weights_of(folder):
    """The file of weights of a model that is not in shards."""
    return next(folder.glob("model*.safetensors"))


def index_of(folder):
    return next(folder.glob("model.safetensors.index*.json"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An ordinary model, a converted one with predictors, and both in shards."""
    folder = tmp_path_factory.mktemp("models")
    converted = smooth_llama()
    rf.convert(converted, 1, TEXT)
    for name, model in (("ordinary", llama()), ("reversible", converted)):
        model.save_pretrained(folder / name)
        model.save_pretrained(folder / f"{name}-shards", max_shard_size="40KB")
    return folder


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit_weights(change):
    def damage(folder):
        weights = load_file(weights_of(folder))
        change(weights)
        save_file(weights, weights_of(folder), metadata={"format": "pt"})

    return damage


def predictor_weight(weights):
    return next(name for name in weights if name.startswith("model.layers.2.update_predictor."))


DAMAGES = {
    "truncated": ("", lambda folder: truncate(weights_of(folder), 5000), "model(.reversible)?.safetensors is damaged"),
    "header only": ("", lambda folder: truncate(weights_of(folder), 50), "model(.reversible)?.safetensors is damaged"),
    "empty": ("", lambda folder: truncate(weights_of(folder), 0), "model(.reversible)?.safetensors is damaged"),
    "no safetensors": (
        "",
        lambda folder: weights_of(folder).write_text("some other text " * 20),
        "model(.reversible)?.safetensors is damaged",
    ),
    "no weights": ("", lambda folder: weights_of(folder).unlink(), "has a config.json but no weights"),
    "config": ("", lambda folder: (folder / "config.json").write_text("{model"), "config.json is damaged"),
    "config a list": ("", lambda folder: (folder / "config.json").write_text("[1]"), "config.json is damaged"),
    "no config": ("", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "missing shard": (
        "-shards",
        lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(),
        "model(.reversible)?-00002-of-000\\d\\d.safetensors, one of \\d+ files of weights, is missing",
    ),
    "damaged shard": (
        "-shards",
        lambda folder: truncate(sorted(folder.glob("*.safetensors"))[-1], 300),
        "model(.reversible)?-000\\d\\d-of-000\\d\\d.safetensors is damaged",
    ),
    "index": ("-shards", lambda folder: index_of(folder).write_text("{x"), f"{INDEX} is damaged"),
    "index names nothing": ("-shards", lambda folder: index_of(folder).write_text("{}"), f"{INDEX} is damaged"),
    "a missing weight": (
        "",
        edit_weights(lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")),
        "do not have model.layers.1.mlp.up_proj.weight; they do not fit",
    ),
    "a weight of another size": (
        "",
        edit_weights(lambda weights: weights.update({"model.norm.weight": torch.ones(7)})),
        "other sizes than its config.json describes",
    ),
}


@pytest.mark.parametrize("kind", ["ordinary", "reversible"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named_in_one_sentence(saved, tmp_path, kind, damage):
    suffix, destroy, message = DAMAGES[damage]
    folder = tmp_path / "model"
    shutil.copytree(saved / f"{kind}{suffix}", folder)
    destroy(folder)
    loaders = [load_causal_lm] if kind == "ordinary" else [load_causal_lm, rf.from_pretrained]
    for load in loaders:
        with pytest.raises(ModelFilesError, match=message) as caught:
            load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(predictor_weight(weights)), "do not have model.layers.2"),
        (
            # Without a check this one would be broadcast.
            lambda weights: weights.update({predictor_weight(weights): torch.ones(1)}),
            "have other sizes than its config.json describes",
        ),
        (lambda weights: weights.update({"model.extra": torch.ones(1)}), "have, where nothing takes it, model.extra"),
    ],
)
def test_weights_of_predictors_must_fit(saved, tmp_path, change, message):
    shutil.copytree(saved / "reversible", tmp_path / "model")
    edit_weights(change)(tmp_path / "model")
    with pytest.raises(ModelFilesError, match=message):
        rf.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("dynamics"),
        lambda entry: entry.update(dynamics={"name": "of another version"}),
        lambda entry: entry.update(ordinary_model_type="no such architecture"),
        lambda entry: entry.update(provenance=[1]),
    ],
)
def test_a_description_that_cannot_be_read_is_one_sentence(saved, tmp_path, change):
    shutil.copytree(saved / "reversible", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    change(config["revformers"])
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError, match="describes no reversible model that this version"):
        rf.from_pretrained(tmp_path / "model")


def test_whole_models_load(saved):
    for suffix in ("", "-shards"):
        assert reversible_stack(load_causal_lm(saved / f"ordinary{suffix}")) is None
        loaded = load_causal_lm(str(saved / f"reversible{suffix}"), dtype=torch.float64)
        assert reversible_stack(loaded) is not None
        assert loaded.dtype == torch.float64
    _, info = AutoModelForCausalLM.from_pretrained(saved / "reversible", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_predictors_are_those_of_the_model_and_not_of_a_checkpoint_below_it(saved, tmp_path):
    shutil.copytree(saved / "reversible", tmp_path / "run")
    shutil.copytree(saved / "reversible", tmp_path / "run/checkpoint-1")
    edit_weights(lambda weights: [w.zero_() for name, w in weights.items() if "update_predictor" in name])(
        tmp_path / "run/checkpoint-1"
    )
    expected = rf.from_pretrained(saved / "reversible")(TEXT).logits
    assert torch.equal(rf.from_pretrained(tmp_path / "run")(TEXT).logits, expected)
    assert not torch.equal(rf.from_pretrained(tmp_path / "run/checkpoint-1")(TEXT).logits, expected)
    assert torch.equal(
        rf.from_pretrained(tmp_path, subfolder="run/checkpoint-1")(TEXT).logits,
        rf.from_pretrained(tmp_path / "run/checkpoint-1")(TEXT).logits,
    )


@pytest.mark.parametrize("sizes", [("50GB", "40KB"), ("40KB", "50GB")])
def test_no_weights_of_an_older_save_are_loaded(saved, tmp_path, sizes):
    """transformers alone keeps model.safetensors beside later shards, and prefers it."""
    rf.make_reversible(llama(), rf.Midpoint()).save_pretrained(tmp_path, max_shard_size=sizes[0])
    (tmp_path / "notes.safetensors").touch()
    model = rf.from_pretrained(saved / "reversible")
    model.save_pretrained(tmp_path, max_shard_size=sizes[1])
    assert (tmp_path / "notes.safetensors").exists()
    assert torch.equal(rf.from_pretrained(tmp_path)(TEXT).logits, model(TEXT).logits)


@pytest.mark.parametrize("load", [load_causal_lm, rf.from_pretrained])
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "runs/nowhere/model"])
def test_a_path_to_nothing_is_no_hub_id(load, name):
    with pytest.raises(FileNotFoundError, match="There is no directory"):
        load(name)


def test_an_architecture_that_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "of next year"}')
    with pytest.raises(ModelFilesError, match=r"has a config\.json but no weights"):
        load_causal_lm(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFilesError, match=r"holds no causal language model that can be loaded: .*of next year"):
        load_causal_lm(tmp_path)


def test_other_mistakes_keep_their_own_error(saved):
    with pytest.raises(TypeError):
        rf.from_pretrained(saved / "reversible", no_such_argument=1)
    with pytest.raises(ValueError, match="attention") as caught:
        rf.from_pretrained(saved / "reversible", attn_implementation="no such attention")
    assert not isinstance(caught.value, ModelFilesError)


@pytest.mark.parametrize("kind", ["ordinary", "reversible"])
def test_verify_ends_with_one_sentence_and_exit_code_2(saved, tmp_path, kind, capsys):
    shutil.copytree(saved / kind, tmp_path / "model")
    truncate(weights_of(tmp_path / "model"), 1000)
    assert main(["verify", str(tmp_path / "model"), "--dynamics", "midpoint"]) == 2
    shown = capsys.readouterr().err
    assert ".safetensors is damaged or incomplete" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((kind("no route"), "it cannot be reached") for kind in UNREACHABLE),
        (TimeoutError("slow"), "it cannot be reached"),
        (OfflineModeIsEnabled("offline"), "offline mode is on"),
    ],
)
def test_a_model_that_the_hub_cannot_be_asked_for_is_refused_at_once(monkeypatch, tmp_path, error, reason):
    asked = []

    def model_info(self, name, timeout):
        asked.append((name, timeout))
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: isinstance(error, OfflineModeIsEnabled))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    for failed in ("refs", "blobs", "snapshots/main", ".no_exist/main"):  # what a failed download leaves
        (cached / failed).mkdir(parents=True)
    message = rf"There is no directory 'owner/name', and the Hugging Face hub cannot be asked .*: {reason}\."
    for load in (rf.from_pretrained, load_causal_lm, load_tokenizer, load_config):
        with pytest.raises(FileNotFoundError, match=message):
            load("owner/name")
    assert asked == [("owner/name", 10)] * 4
    (cached / "snapshots" / "main" / "config.json").write_text("{}")
    look_up("owner/name", {})
    assert len(asked) == 4


def test_a_fault_of_ours_is_not_taken_for_one_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(HfApi, "model_info", lambda *arguments, **options: 1 / 0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        look_up("owner/name", {})


def test_the_errors_of_the_hub_are_those_of_its_http_library():
    library, system = UNREACHABLE
    assert system is OSError
    assert library.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
    assert not issubclass(HFValidationError, UNREACHABLE)
    assert issubclass(HfHubHTTPError, UNREACHABLE)
