import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_causal_lm, load_config, load_tokenizer
from revformers.checkpoints.marks import KEY
from revformers.data.tokenizer import train_tokenizer
from revformers.errors import ModelFilesError
from revformers.models.parts import reversible_stack
from tests.test_reversible import llama

IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def saved(tmp_path):
    model = rf.make_reversible(llama(), rf.BlendedMidpoint([0.25, 1, -0.5, 1], readout="mean"), "checkpoint")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("load", [rf.from_pretrained, AutoModelForCausalLM.from_pretrained], ids=["ours", "auto"])
def test_a_saved_model_loads_as_itself(saved, load):
    model, path = saved
    loaded = load(path)
    assert isinstance(loaded, LlamaForCausalLM)
    assert reversible_stack(loaded).dynamics == reversible_stack(model).dynamics
    assert reversible_stack(loaded).activations == rf.Checkpoint()
    assert loaded.config.model_type == "llama"
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_keyword_arguments_reach_transformers(saved):
    assert rf.from_pretrained(saved[1], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_weights_have_the_names_of_the_ordinary_network(saved):
    model, path = saved
    ordinary = rf.make_residual(model)
    stored = load_file(path / "model.reversible.safetensors")
    assert stored.keys() == ordinary.state_dict().keys()


def test_a_loaded_model_can_be_saved_again(saved, tmp_path):
    model, path = saved
    rf.from_pretrained(path).save_pretrained(tmp_path / "again")
    assert torch.equal(rf.from_pretrained(tmp_path / "again")(IDS).logits, model(IDS).logits)


def test_saving_over_an_older_model_and_nothing_left_beside(saved, tmp_path):
    _, path = saved
    other = rf.make_reversible(llama(layers=3), rf.Leapfrog())
    other.save_pretrained(path)
    assert torch.equal(rf.from_pretrained(path)(IDS).logits, other(IDS).logits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_keeps_the_older_model(saved, monkeypatch, tmp_path):
    model, path = saved
    other = rf.make_reversible(llama(layers=3), rf.Leapfrog())

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        other.save_pretrained(path)
    assert torch.equal(rf.from_pretrained(path)(IDS).logits, model(IDS).logits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_model_class_itself_refuses_to_load_it_as_an_ordinary_network(saved):
    with pytest.raises(ValueError, match="pip install revformers"):
        LlamaForCausalLM.from_pretrained(saved[1])


def test_an_ordinary_model_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an ordinary model"):
        rf.from_pretrained(tmp_path)


def test_a_model_made_ordinary_again_saves_as_an_ordinary_one(saved, tmp_path):
    model, _ = saved
    rf.make_residual(model).save_pretrained(tmp_path / "ordinary")
    assert json.loads((tmp_path / "ordinary" / "config.json").read_text())["model_type"] == "llama"
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "ordinary")(IDS).logits, model(IDS).logits)


def test_tied_weights_and_shards(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=2, n_positions=16)).eval()
    rf.make_reversible(model, rf.Hamiltonian()).save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.reversible.json").exists()
    loaded = rf.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_an_adapter_merged_into_a_reversible_model_stays_reversible(saved, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, _ = saved
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(rf.from_pretrained(tmp_path / "merged")(IDS).logits, merged(IDS).logits)


@pytest.mark.parametrize("content", ["{}", "null", "[]", "", '{"added_tokens": []}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(tmp_path, name, content):
    train_tokenizer(["a text"], 270).save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    if name == "tokenizer_config.json" and content.startswith("{"):
        assert load_tokenizer(tmp_path)("a text")["input_ids"]
        return
    with pytest.raises(ModelFilesError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert re.match(r"The tokenizer in .* is damaged: |No tokenizer can be loaded from ", str(caught.value))
    assert "\n" not in str(caught.value)


LOADERS = [load_causal_lm, load_tokenizer, load_config]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_of_weights_alone_is_read_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = llama()
    for name, weights in (("plain", model.state_dict()), ("evil", {"model.embed_tokens.weight": Malicious()})):
        model.config.save_pretrained(name)
        torch.save(weights, f"{name}/pytorch_model.bin")
    assert torch.equal(load_causal_lm("plain")(IDS).logits, model.eval()(IDS).logits)
    with pytest.raises(ModelFilesError, match=r"a pickle that holds more than tensors.*take the model in safetensors"):
        load_causal_lm("evil")
    assert not Path("ran").exists()


@pytest.mark.parametrize("load", LOADERS)
def test_code_beside_a_model_is_never_run_and_nobody_is_asked(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    Path("own/config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    Path("own/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": names}))
    Path("own/model.safetensors").write_bytes(b"")
    Path("own/own.py").write_text("import os; os.mkdir('/ran')")
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question"))
    with pytest.raises(ModelFilesError):
        load("own")
    assert not Path("/ran").exists()
    with pytest.raises(ModelFilesError, match="needs Python code of its own, which is not run"):
        load_config("own")


@pytest.mark.parametrize("load", LOADERS)
def test_a_name_that_is_nowhere_is_one_sentence_at_once(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    Path("runs").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no directory 'runs/missing' to load a model from"):
        load("runs/missing")
    for name in ("missing", "owner/missing"):
        monkeypatch.setattr(HfApi, "model_info", lambda *words, **options: raise_(ConnectionError("no route")))
        with pytest.raises(FileNotFoundError, match=f"There is no directory '{name}', and the Hugging Face hub cannot"):
            load(name)


def raise_(error):
    raise error


@pytest.mark.parametrize("load", LOADERS)
def test_a_run_directory_names_the_model_in_it(load, saved, tmp_path):
    saved[1].rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    (tmp_path / "moved").rename(tmp_path / "run" / "model")
    with pytest.raises(ModelFilesError, match=r"run is the directory of a run; name .*run/model in it"):
        load(tmp_path / "run")


def test_dynamics_that_are_not_registered_are_one_sentence(saved):
    path = saved[1] / "config.json"
    values = json.loads(path.read_text())
    values[KEY]["dynamics"]["name"] = "mine"
    path.write_text(json.dumps(values))
    for load in (load_causal_lm, load_config):
        with pytest.raises(ModelFilesError, match=r"^The config\.json of") as caught:
            load(saved[1])
        assert str(caught.value).count("The config.json of") == 1
        assert "import the module that registers them" in str(caught.value)
