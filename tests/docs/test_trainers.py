"""Every block of docs/guides/trainers.md runs, after the block that begins the page, on a tiny network."""

import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

import revformers as rf
from revformers.cli.main import main
from revformers.models.parts import reversible_stack
from tests.docs.pages import PAGES
from tests.lab.evaluation.tiny import tiny_model, tiny_tokenizer, write_data

PAGE = PAGES["docs/guides/trainers.md"]
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
    exec(compile(code, f"docs/guides/trainers.md, {title}", "exec"), names)
    return names


def check(names):
    """Assert what holds for every block: the network is the one that was made, and its gradients were verified."""
    assert rf.describe(names["model"]).recurrence.startswith("p[l+1] = 1/16")
    if "trainer" in names:
        assert reversible_stack(names["trainer"].model).dynamics == rf.BlendedMidpoint("1/16")
        assert names["callback"].report.bit_exact


@pytest.mark.thorough
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


def test_the_checkpointing_that_trl_asks_for_is_left_out_with_a_warning(workspace):
    with pytest.warns(UserWarning, match="Gradient checkpointing is not switched on"):
        names = run_block("SFT")
    assert names["trainer"].args.gradient_checkpointing  # TRL's default
    assert names["trainer"].args.bf16


def test_there_is_a_block_for_every_trainer():
    titles = " ".join(BLOCKS)
    for name in ("Trainer", "SFT", "DPO", "GRPO", "Reward", "PEFT", "accelerate", "lm-evaluation-harness"):
        assert name in titles


def test_the_command_lines_name_what_is_there(workspace, monkeypatch):
    """They are run by tests/cli/test_run.py."""
    lines = re.findall(r"^((?:revformers|accelerate|torchrun) .*)$", PAGE, re.MULTILINE)
    assert len(lines) == 5
    Path("train.py").touch()
    monkeypatch.setattr("revformers.cli.run._exit_code", lambda _: 0)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for line in lines:
        ours = re.search(r"(?:revformers run|-m revformers\.cli\.run) (.*)", line).group(1)
        assert main(["run", *shlex.split(ours)]) == 0


IDS = torch.arange(40, 72).view(2, 16)
PEFT_TABLE = {
    "LoRA": LoraConfig(target_modules="all-linear"),
    "DoRA": LoraConfig(target_modules="all-linear", use_dora=True),
    "modules_to_save": LoraConfig(target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"]),
    "trainable_token_indices": LoraConfig(target_modules="all-linear", trainable_token_indices={"embed_tokens": [41]}),
    "aLoRA": LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", alora_invocation_tokens=[45]),
    "IA3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LN tuning": LNTuningConfig(target_modules=["input_layernorm"]),
    "VeRA": VeraConfig(r=2, target_modules=["q_proj"]),
    "BOFT": BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "OFT": OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]),
    "LoHa": LoHaConfig(r=2, target_modules=["q_proj"]),
    "FourierFT": FourierFTConfig(n_frequency=8, target_modules=["q_proj"]),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "adaption prompts": AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1),
}
"""What the row of exact adapters names."""


def adapted(config, activations="rebuild"):
    torch.manual_seed(0)
    return get_peft_model(rf.make_reversible(tiny_model(), rf.BlendedMidpoint("1/16"), activations), config).train()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PEFT_TABLE)
def test_gradients_of_an_adapter_are_exact(name):
    (row,) = (line for line in PAGE.splitlines() if line.endswith("gradients equal stored ones to the bit |"))
    assert name in row
    report = rf.verify_gradients(adapted(PEFT_TABLE[name]), {"input_ids": IDS, "labels": IDS})
    assert report.bit_exact
    assert math.isfinite(report.loss)


def test_prefix_tuning_is_refused_unless_activations_are_stored():
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    for activations in ("rebuild", "checkpoint"):
        with pytest.raises(ValueError, match=r"prefix tuning.*set_activations"):
            adapted(config, activations)(input_ids=IDS, labels=IDS)
    model = adapted(config, "store")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert model.prompt_encoder.default.embedding.weight.grad.any()


def test_two_adapters_in_one_backward_pass_are_refused_unless_activations_are_stored():
    for activations in ("store", "rebuild"):
        model = adapted(PEFT_TABLE["LoRA"], activations)
        model.add_adapter("other", PEFT_TABLE["LoRA"])
        losses = []
        for name in ("default", "other"):
            model.set_adapter(name)
            losses.append(model(input_ids=IDS, labels=IDS).loss)
        if activations == "store":
            sum(losses).backward()
    with pytest.raises(rf.RebuildMismatchError, match="Call backward before such a change"):
        sum(losses).backward()


def test_layers_are_replicated_before_the_model_is_made_reversible():
    config = LoraConfig(target_modules="all-linear", layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(rf.NotReversibleError, match=r"before revformers\.make_reversible"):
        adapted(config)(input_ids=IDS)
    model = rf.make_reversible(get_peft_model(tiny_model(), config).train(), rf.BlendedMidpoint("1/16"))
    assert rf.verify_gradients(model, {"input_ids": IDS, "labels": IDS}).bit_exact
