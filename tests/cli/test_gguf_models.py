"""Every command that takes a model takes one in a GGUF file."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import revformers as rf
from lab.__main__ import main as laboratory
from revformers.checkpoints import gguf_file
from revformers.cli.main import main
from tests.gguf_models import TEXT, rounded, tiny_llama, tiny_tokenizer, write_gguf
from tests.lab.evaluation.tiny import write_data

RECIPE = """
model: {name: models/tiny.gguf}
conversion: {bits: 4, sequences: 4}
data: {source: text.txt, block_length: 32, validation_blocks: 2}
adapter: {kind: lora, rank: 2}
training:
  max_steps: 1
  per_device_train_batch_size: 2
  arguments: {use_cpu: true}
output: run
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models/tiny.gguf", tiny_llama(), tiny_tokenizer())
    return tmp_path


def test_convert(workspace):
    options = ["--length", "32", "--sequences", "4", "--held_out", "2", "--bits", "6"]
    assert main(["convert", "models/tiny.gguf", "--calibration", "text.txt", "--out", "converted", *options]) == 0
    model = rf.from_pretrained("converted").eval()
    assert model.dtype == torch.bfloat16
    ids = torch.arange(3, 33)[None]
    torch.testing.assert_close(model(ids).logits.float(), rounded(tiny_llama())(ids).logits, rtol=0, atol=0.02)
    assert AutoTokenizer.from_pretrained("converted")("line 7").input_ids == tiny_tokenizer()("line 7").input_ids
    assert "base_model" not in (workspace / "converted/README.md").read_text()


@pytest.mark.thorough
def test_finetune(workspace):
    assert main(["finetune", "recipe.yaml"]) == 0
    adapted = rf.load_adapter("run/adapter")
    assert adapted.get_base_model().dtype == torch.float32
    weight = rounded(tiny_llama()).model.layers[0].mlp.up_proj.weight
    assert torch.equal(adapted.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight, weight)


def test_weights_of_a_file_are_not_quantised_anew(workspace, capsys):
    assert main(["finetune", "recipe.yaml", "--model.quantization", "nf4"]) == 2
    assert "set model.quantization to none" in capsys.readouterr().err


def test_evaluate(workspace, capsys):
    write_data(workspace / "data")
    rounded(tiny_llama()).bfloat16().save_pretrained("same")
    tiny_tokenizer().save_pretrained("same")
    options = ["--tasks", "local_piqa", "--data", "data", "--limit", "3", "--out", "result.json"]
    assert laboratory(["evaluate", "models/tiny.gguf", "--against", "same", *options]) == 0
    result = json.loads((workspace / "result.json").read_text())
    assert [difference["difference"]["value"] for difference in result["differences"]] == [0] * len(
        result["differences"]
    )


@pytest.mark.thorough
def test_plan(workspace, capsys):
    plans = []
    tiny_llama().save_pretrained("ordinary")
    for name in ("models/tiny.gguf", "ordinary"):
        assert main(["plan", name, "--memory", "1GB", "--sequence_length", "64", "--bits", "0", "--json", "-"]) == 0
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1]


def test_verify(workspace, capsys):
    assert main(["verify", "models/tiny.gguf", "--dynamics", "midpoint", "--length", "16"]) == 0
    shown = capsys.readouterr().out
    assert "equal stored gradients to the bit" in shown
    assert "bfloat16" in shown


COMMANDS = {
    "convert": ["convert", "FILE", "--calibration", "text.txt", "--out", "converted"],
    "finetune": ["finetune", "recipe.yaml", "--model.name", "FILE"],
    "evaluate": ["evaluate", "FILE", "--tasks", "local_piqa", "--data", "data"],
    "plan": ["plan", "FILE", "--memory", "1GB"],
    "verify": ["verify", "FILE", "--dynamics", "midpoint"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", ["nowhere", "directory", "damaged", "package"])
def test_faults_are_one_sentence_and_exit_code_2(workspace, command, fault, monkeypatch, capsys):
    file = workspace / "models/tiny.gguf"
    message = 'pip install "revformers[gguf]"'
    if fault == "package":
        monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    elif fault == "damaged":
        file.write_bytes(file.read_bytes()[:5000])
        message = "download"
    elif fault == "directory":
        file, message = workspace / "models.gguf", "models.gguf is a directory"
        file.mkdir(exist_ok=True)
    else:
        file, message = workspace / "nowhere.gguf", "nowhere.gguf"
    program = laboratory if command == "evaluate" else main
    assert program([str(file) if word == "FILE" else word for word in COMMANDS[command]]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_the_reference_is_another_model_than_the_unrounded_one():
    same = LlamaForCausalLM(tiny_llama().config)
    same.load_state_dict(rounded(tiny_llama()).state_dict())
    assert not torch.equal(same.lm_head.weight, tiny_llama().lm_head.weight)
