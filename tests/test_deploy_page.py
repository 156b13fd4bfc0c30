"""The commands and the Python of docs/deploy.md run, on a tiny network, and end with what it says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from revformers.checkpoints.model_config import KEY
from revformers.cli.main import main
from tests.training.tiny_finetune import write_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
SMALLER = {
    "finetune": "--conversion.sequences 4 --data.block_length 64 --data.validation_blocks 2 --training.max_steps 2 "
    "--training.eval_steps 2 --training.per_device_train_batch_size 2 --training.arguments.use_cpu true "
    "--model.dtype float32",
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    write_model(tmp_path)
    (tmp_path / "model").rename(tmp_path / "pretrained")
    records = [
        {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(60)
    ]
    (tmp_path / "instructions.json").write_text(json.dumps(records))
    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "recipes/lora-instructions.yaml", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_commands_leave_an_adapter_and_a_model_of_the_ordinary_network(workspace, capsys):
    commands = [line.strip() for line in PAGE.splitlines() if line.startswith("    revformers ")]
    assert [command.split()[1] for command in commands] == ["finetune"]
    for command in commands:
        _, name, *words = shlex.split(command)
        assert main([name, *words, *shlex.split(SMALLER[name])]) == 0, capsys.readouterr().err
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
    (line,) = re.findall(r"```yaml\n(.*?)\n```", PAGE, re.DOTALL)
    assert line in (ROOT / "recipes/lora-instructions.yaml").read_text().splitlines()


def test_the_python_ends_with_an_ordinary_model(workspace):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model = AutoModelForCausalLM.from_pretrained("pretrained")
    names = {"model": model, "calibration": torch.arange(256).view(8, 32)}
    exec(block, names)
    assert KEY not in json.loads((workspace / "deployed/config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained("deployed")
