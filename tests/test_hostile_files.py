"""Files that hold code are never run: pickles in place of weights and of the state of a run, and modules of a model."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_causal_lm
from revformers.errors import ModelFilesError
from tests.tiny_models import tiny


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "the code ran"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny("llama").save_pretrained(folder / "ordinary")
    rf.make_reversible(tiny("llama"), rf.Midpoint()).save_pretrained(folder / "reversible")
    adapted = get_peft_model(rf.make_reversible(tiny("llama"), rf.Midpoint()), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "saved")


def pickled(trace, path):
    """Write a pickle of code, as a whole file and in the form of torch.save."""
    torch.save({"weight": Code(trace)}, path)
    assert not trace.exists()


def test_the_pickle_of_this_test_does_run_code(trace):
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()


NO_WEIGHTS = r"has a config\.json but no weights \(model\.reversible\.safetensors\)"
REFUSED = r"are a pickle that holds more than tensors, which may run code and is not loaded; take the {} in safetensors"
LOADS = [
    ("reversible", rf.from_pretrained),
    ("reversible", AutoModelForCausalLM.from_pretrained),
    ("reversible", load_causal_lm),
    ("ordinary", load_causal_lm),
]


@pytest.mark.parametrize(("name", "load"), LOADS)
def test_a_pickle_in_place_of_weights(folder, trace, name, load):
    for path in [*(folder / name).glob("*.safetensors")]:
        pickled(trace, path.with_suffix(".bin"))
        path.unlink()
    pickled(trace, folder / name / "pytorch_model.bin")
    # A reversible model has no weights but in safetensors.
    with pytest.raises(ModelFilesError, match=NO_WEIGHTS if name == "reversible" else REFUSED.format("model")):
        load(folder / name)
    assert not trace.exists()


def test_a_pickle_in_place_of_an_adapter(folder, trace):
    (folder / "adapter/adapter_model.safetensors").unlink()
    pickled(trace, folder / "adapter/adapter_model.bin")
    with pytest.raises(ModelFilesError, match=REFUSED.format("adapter")):
        rf.load_adapter(folder / "adapter", tiny("llama"))
    assert not trace.exists()


@pytest.mark.parametrize(("name", "load"), LOADS)
def test_the_modules_of_a_model(folder, trace, name, load):
    """A configuration that names a module in its folder loads the family of transformers, and runs no module."""
    path = folder / name / "config.json"
    values = json.loads(path.read_text())
    values["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    path.write_text(json.dumps(values))
    (folder / name / "code.py").write_text(f"open({str(trace)!r}, 'w')\n")
    load(folder / name)
    assert not trace.exists()
