import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_causal_lm
from revformers.models.parts import reversible_stack
from tests.checkpoints.test_faulty_files import edit_weights
from tests.conversion.test_convert import TEXT
from tests.test_reversible import llama


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
