import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import revformers as rf
from revformers.checkpoints.load import load_causal_lm
from revformers.cli.main import main
from revformers.errors import ModelFilesError

INDEX = r"model.safetensors.index(.reversible)?.json"


def weights_of(folder):
    """The file of weights of a model that is not in shards."""
    return next(folder.glob("model*.safetensors"))


def index_of(folder):
    return next(folder.glob("model.safetensors.index*.json"))


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
