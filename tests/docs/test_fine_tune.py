"""The commands and the Python of docs/guides/fine-tune.md run on a tiny network, and end with what it says."""

import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from revformers.checkpoints.model_config import KEY
from revformers.cli.main import main
from tests.docs.pages import ROOT, blocks, commands

(COMMAND,) = (words for words in commands("docs/guides/fine-tune.md") if "recipes/lora-instructions.yaml" in words)
SMALLER = (
    "--conversion.sequences 4 --data.block_length 64 --data.validation_blocks 2 --training.max_steps 2 "
    "--training.eval_steps 2 --training.per_device_train_batch_size 2 --training.arguments.use_cpu true "
    "--model.dtype float32"
)


def test_the_command_leaves_an_adapter_and_a_model_of_the_ordinary_network(workspace, capsys):
    assert main([*COMMAND[1:], *SMALLER.split()]) == 0, capsys.readouterr().err
    run = workspace / "runs/lora-instructions"
    assert {"validation_loss", "deployed_validation_loss"} <= json.loads((run / "metrics.json").read_text()).keys()
    base = AutoModelForCausalLM.from_pretrained("pretrained")
    adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)
    assert f"Model:    {run.relative_to(workspace)}/model" in capsys.readouterr().out


def test_the_line_of_the_recipe_is_the_one_of_the_page():
    (line,) = (block for block in blocks("docs/guides/fine-tune.md", "yaml") if "deploy" in block)
    assert line.strip() in (ROOT / "recipes/lora-instructions.yaml").read_text().splitlines()


def test_the_python_ends_with_an_ordinary_model(workspace):
    (block,) = blocks("docs/guides/fine-tune.md", "python")
    model = AutoModelForCausalLM.from_pretrained("pretrained")
    names = {"model": model, "calibration": torch.arange(256).view(8, 32)}
    exec(block, names)
    assert KEY not in json.loads((workspace / "deployed/config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained("deployed")
