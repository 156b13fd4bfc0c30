"""Every block of docs/trainers.md runs, behind the block that begins the page, on a tiny network."""

import math
import re
import shlex
from pathlib import Path

import pytest
import torch

import revformers as rf
from revformers.cli.main import main
from revformers.hf.state import reversible_stack
from tests.evaluation.tiny import tiny_model, tiny_tokenizer, write_data

PAGE = (Path(__file__).parents[1] / "docs/trainers.md").read_text(encoding="utf-8")
BEGINNING, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
SMALLER = {
    "HuggingFaceTB/SmolLM2-135M": "pretrained",
    "per_device_train_batch_size=2": "per_device_train_batch_size=2, use_cpu=True, report_to='none'",
}
"""What stands in the blocks, and what takes its place so that they run anywhere and in a second."""


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


BLOCKS = {section.split("\n")[0]: "\n".join(blocks(section)) for section in SECTIONS if blocks(section)}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A directory with an ordinary pretrained model, its tokenizer, and data for the evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_model(positions=256).save_pretrained("pretrained")
    tiny_tokenizer().save_pretrained("pretrained")
    write_data(tmp_path / "data")
    return tmp_path


def run_block(title):
    """Run the page's beginning and the block of a section, and return the names that they leave."""
    names = {}
    (beginning,) = blocks(BEGINNING)
    code = f"{beginning}\n{BLOCKS[title]}"
    for here, there in SMALLER.items():
        code = code.replace(here, there)
    exec(compile(code, f"docs/trainers.md, {title}", "exec"), names)
    return names


def check(names):
    """Assert what holds for every block: the network is the one that was made, and its gradients were verified."""
    assert rf.describe(names["model"]).recurrence.startswith("p[l+1] = 1/16")
    if "trainer" in names:
        assert reversible_stack(names["trainer"].model).dynamics == rf.BlendedMidpoint("1/16")
        assert names["callback"].report.bit_exact


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("title", BLOCKS)
def test_the_block_runs(title, workspace):
    names = run_block(title)
    check(names)
    history = names["trainer"].state.log_history if "trainer" in names else []
    if title.startswith("DPO"):
        assert reversible_stack(names["trainer"].ref_model).dynamics == rf.BlendedMidpoint("1/16")
        assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    if title.startswith("GRPO"):
        assert history[0]["kl"] == pytest.approx(0, abs=1e-6)
    if "again" in names:
        trained = names["trainer"].model if "trainer" in names else names["model"]
        assert reversible_stack(names["again"]).dynamics == reversible_stack(trained).dynamics
        weights = names["again"].state_dict()
        assert weights.keys() == trained.state_dict().keys()
        assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())


def test_there_is_a_block_for_every_trainer():
    titles = " ".join(BLOCKS)
    for name in ("Trainer", "SFT", "DPO", "GRPO", "Reward", "PEFT", "accelerate", "lm-evaluation-harness"):
        assert name in titles


def commands():
    return [line.strip() for line in PAGE.splitlines() if re.match(r" {4}(revformers|accelerate|torchrun) ", line)]
