import pytest
import torch
from safetensors.torch import load_file

import revformers as rf
from revformers.checkpoints.adapter import load_model_or_adapter
from revformers.checkpoints.adapter_base import PREDICTORS
from revformers.errors import ModelFilesError
from revformers.models.parts import require_reversible
from tests.checkpoints.adapters import BASES, REFUSED, base, wrong_base
from tests.tiny_trainers import (
    logits,
    make,
    small,
    what_it_is,
    with_adapter,
)


@pytest.mark.parametrize("kind", BASES)
def test_one_call_makes_the_base_right(kind, folder, adapters):
    directory, expected, network = adapters[kind]
    for loaded in (rf.load_adapter(directory), rf.load_adapter(str(directory), base(kind, folder))):
        assert what_it_is(loaded) == network
        assert torch.equal(logits(loaded), expected)
    for wrong in ("other dynamics", "other predictors"):
        with pytest.raises(ValueError, match=REFUSED):
            rf.load_adapter(directory, wrong_base(wrong, folder))


def test_a_loaded_base_gets_the_states_of_the_training_and_a_given_one_keeps_its_own(folder, tmp_path):
    adapted = with_adapter(make("loaded", folder))
    rf.set_states(adapted, "int32:12")
    adapted.save_pretrained(tmp_path)
    given = base("loaded", folder)
    for loaded, states in (
        (rf.load_adapter(tmp_path), "int32:12"),
        (rf.load_adapter(tmp_path, small()), "int32:12"),
        (rf.load_adapter(tmp_path, given), "auto"),
    ):
        assert str(require_reversible(loaded).states) == states


@pytest.mark.parametrize("kind", ["memory", "converted"])
def test_one_call_makes_an_ordinary_base_right_in_place(kind, folder, adapters):
    directory, expected, network = adapters[kind]
    model = wrong_base("ordinary", folder)
    loaded = rf.load_adapter(directory, model)
    assert loaded.get_base_model() is model
    assert what_it_is(model) == network
    assert torch.equal(logits(loaded), expected)


def test_an_adapter_of_a_base_that_was_never_saved_asks_for_it(folder, tmp_path):
    adapted = with_adapter(make("unnamed", folder))
    adapted.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"was never saved.*pass it as revformers\.load_adapter"):
        rf.load_adapter(tmp_path)
    assert torch.equal(logits(rf.load_adapter(tmp_path, small())), logits(adapted))


def test_a_base_that_is_gone_is_asked_for(folder, tmp_path):
    make("memory", folder).save_pretrained(tmp_path / "base")
    adapted = with_adapter(rf.from_pretrained(tmp_path / "base"))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is not in .*base; work in .*or pass .* as revformers\.load_adapter"):
        rf.load_adapter(tmp_path / "adapter")
    for there in (rf.from_pretrained(tmp_path / "elsewhere"), tmp_path / "elsewhere", str(tmp_path / "elsewhere")):
        assert torch.equal(logits(rf.load_adapter(tmp_path / "adapter", there)), logits(adapted))
    with pytest.raises(FileNotFoundError, match=r"is not in .*nowhere"):
        rf.load_adapter(tmp_path / "adapter", tmp_path / "nowhere")


def test_a_base_named_by_a_relative_path_is_asked_for_at_once_elsewhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("memory", folder).save_pretrained("base")
    adapted = with_adapter(rf.from_pretrained("base"))
    adapted.save_pretrained("there/adapter")
    assert torch.equal(logits(rf.load_adapter("there/adapter")), logits(adapted))
    monkeypatch.chdir("there")
    with pytest.raises(FileNotFoundError, match="is not in base; work in the directory of its training, or pass the"):
        rf.load_adapter("adapter")
    assert torch.equal(logits(rf.load_adapter("adapter", "../base")), logits(adapted))


def test_a_command_loads_a_model_or_an_adapter(folder, tmp_path):
    make("memory", folder).save_pretrained(tmp_path / "base")
    adapted = with_adapter(rf.from_pretrained(tmp_path / "base"))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model_or_adapter(tmp_path / "adapter", trainable=True)
    assert torch.equal(logits(loaded), logits(adapted))
    assert any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(load_model_or_adapter(tmp_path / "base")), logits(rf.from_pretrained(tmp_path / "base")))


def test_one_call_refuses_an_adapter_of_an_ordinary_network(ordinary_adapter):
    with pytest.raises(ValueError, match=r"an adapter of an ordinary model; load it with peft\.PeftModel"):
        rf.load_adapter(ordinary_adapter)


@pytest.mark.parametrize("kind", ["memory", "loaded"])
def test_resized_embeddings_are_saved_with_the_adapter(kind, folder, tmp_path):
    model = base(kind, folder)
    model.resize_token_embeddings(70, mean_resizing=False)
    adapted = with_adapter(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[61:].fill_(0.5)
    with pytest.warns(UserWarning, match="the embedding layer has been resized"):
        adapted.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any("embed_tokens" in name for name in names)
    right = base(kind, folder)
    right.resize_token_embeddings(70, mean_resizing=False)
    for loaded in (rf.load_adapter(tmp_path, right), rf.load_adapter(tmp_path)):
        assert torch.equal(logits(loaded), logits(adapted))


def test_predictors_that_are_cut_short_are_named(folder, tmp_path):
    with_adapter(make("converted", folder)).save_pretrained(tmp_path)
    file = tmp_path / PREDICTORS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ModelFilesError, match=rf"{PREDICTORS} is damaged or incomplete .*; save or download the adapter"
    ):
        rf.load_adapter(tmp_path)


@pytest.mark.parametrize("given", [False, True])
def test_weights_that_are_cut_short_are_named(given, folder, tmp_path):
    with_adapter(make("converted", folder)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelFilesError, match=r"weights in .* are damaged or incomplete .*; save or download the"):
        rf.load_adapter(tmp_path, make("converted", folder) if given else None)
