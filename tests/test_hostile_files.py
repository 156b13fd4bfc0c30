"""Files that hold code are never run: pickles in place of weights and of the state of a run, and modules of a model."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import revformers as rf
from revformers.checkpoints.load import load_causal_lm
from revformers.errors import ModelFilesError, UserError
from revformers.training.pretrain import pretrain
from revformers.training.seal import facts_of, seal
from tests.tiny_models import tiny
from tests.training.tiny import tiny_recipe


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
    """Write a pickle of code in the form of torch.save."""
    torch.save({"weight": Code(trace)}, path)
    assert not trace.exists()


def test_the_pickle_of_this_test_does_run_code(trace):
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()


PICKLES = {"reversible": "pytorch_model.reversible.bin", "ordinary": "pytorch_model.bin"}
"""What transformers reads where there are no weights in safetensors."""

REFUSED = r"are a pickle that holds more than tensors, which may run code and is not loaded; take the {} in safetensors"
LOADS = [
    ("reversible", rf.from_pretrained),
    ("reversible", AutoModelForCausalLM.from_pretrained),
    ("reversible", load_causal_lm),
    ("ordinary", load_causal_lm),
]


@pytest.mark.parametrize(("name", "load"), LOADS)
def test_a_pickle_in_place_of_weights(folder, trace, name, load):
    (weights,) = (folder / name).glob("*.safetensors")
    path = folder / name / PICKLES[name]
    torch.save(load_file(weights), path)
    weights.unlink()
    load(folder / name)  # tensors alone are read from a pickle, so that code would be as well
    pickled(trace, path)
    with pytest.raises(ModelFilesError, match=REFUSED.format("model")):
        load(folder / name)
    assert not trace.exists()


def test_a_pickle_in_place_of_an_adapter(folder, trace):
    (folder / "adapter/adapter_model.safetensors").unlink()
    pickled(trace, folder / "adapter/adapter_model.bin")
    with pytest.raises(ModelFilesError, match=REFUSED.format("adapter")):
        rf.load_adapter(folder / "adapter", tiny("llama"))
    assert not trace.exists()


def train(folder, **options):
    steps = {f"training.{name}": 1 for name in ("save_steps", "eval_steps")} | {"training.max_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REVFORMERS_CACHE", str(folder / "cache"))
        return pretrain(tiny_recipe(folder, steps), console=Console(file=io.StringIO()), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run of two steps, and a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_place_of_the_state_of_a_run(finished, trace, name):
    """Its seal is forged too, or the checkpoint would be set aside as a damaged one."""
    shutil.rmtree(finished / "run/checkpoint-2", ignore_errors=True)
    shutil.rmtree(finished / "run/model", ignore_errors=True)
    (finished / "run/metrics.json").unlink(missing_ok=True)
    checkpoint = finished / "run/checkpoint-1"
    facts = {key: value for key, value in facts_of(checkpoint).items() if key != "sha256"}
    kept = (checkpoint / name).read_bytes()
    pickled(trace, checkpoint / name)
    seal(checkpoint, **facts)
    with pytest.raises(UserError, match=r"checkpoint-1 holds a pickle with more than tensors, which may run code"):
        train(finished, resume=True)
    assert not trace.exists()
    (checkpoint / name).write_bytes(kept)


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
