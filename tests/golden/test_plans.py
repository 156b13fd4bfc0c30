"""The numbers of `revformers plan` for five small models, to the byte. `golden_file` says how to write plans.json anew.

A plan depends on which tensors PyTorch's operators and transformers' layers allocate, so the bytes are compared where
their versions are those of the golden file, and up to two percent elsewhere. Its prose is left out.
"""

import copy
import json
import math

import pytest
import transformers

from revformers.cli.main import main
from tests.golden.golden_file import fingerprint, golden

LLAMA = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 6, "n_head": 2, "n_positions": 1024}
QWEN3 = LLAMA | {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 6}
GEMMA2 = QWEN3 | {"sliding_window": 16}
FLOAT32_SGD = ["--dtype", "float32", "--optimizer", "sgd"]
ADAM_8_BIT = ["--optimizer", "adamw8bit"]

MODELS = {
    "llama, all weights": (
        ("LlamaConfig", LLAMA | {"num_hidden_layers": 12}),
        ["--memory", "4MB", "--sequence_length", "64", "--bits", "0", "2"],
    ),
    "gpt2, float32, its own head": (
        ("GPT2Config", GPT2),
        ["--memory", "4MB", "--sequence_length", "32", "--bits", "0", "--head", "own", *FLOAT32_SGD],
    ),
    "qwen3, LoRA": (
        ("Qwen3Config", QWEN3),
        ["--memory", "2MB", "--sequence_length", "96", "--bits", "1", "--train", "lora", "--gpu", "a100"],
    ),
    "gemma2, QLoRA": (
        ("Gemma2Config", GEMMA2),
        ["--memory", "3MB", "--sequence_length", "48", "--bits", "4", "--train", "qlora", *ADAM_8_BIT],
    ),
    "olmo2, little memory": (
        ("Olmo2Config", LLAMA | {"num_hidden_layers": 8, "pad_token_id": 0, "eos_token_id": 2}),
        ["--memory", "0.8MB", "--sequence_length", "32", "--bits", "0", "--operations_per_byte", "50"],
    ),
}
PROSE = ("recommendation", "refusal")


def numbers(plan):
    """Return a plan without its prose, of which counts only whether there is a refusal."""
    kept = {name: value for name, value in plan.items() if name not in PROSE}
    return kept | {"refused": plan["refusal"] is not None}


def same(expected, found, tolerance):
    """Whether two plans are equal, their numbers up to a relative tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same(expected[key], found[key], tolerance) for key in found)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same, expected, found, [tolerance] * len(found)))
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=tolerance)
    return expected == found


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_is_that_of_the_golden_file(name, tmp_path, capsys):
    (config_class, fields), options = MODELS[name]
    getattr(transformers, config_class)(**fields).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), *options, "--json", "-"]) == 0
    found = numbers(json.loads(capsys.readouterr().out))
    expected, machine = golden("plans.json", name, found)
    versions = [{key: where[key] for key in ("torch", "transformers")} for where in (machine, fingerprint())]
    if versions[0] == versions[1]:
        assert found == expected
    else:
        assert same(expected, found, tolerance=0.02)


def test_one_byte_more_is_noticed():
    plan = {"setups": [{"name": "store", "memory": {"weights": 148224}}], "chosen": 0}
    more, other = copy.deepcopy(plan), copy.deepcopy(plan)
    more["setups"][0]["memory"]["weights"] += 1
    assert more != plan
    assert same(plan, more, tolerance=0.02)
    other["setups"][0]["memory"]["weights"] *= 1.1
    assert not same(plan, other, tolerance=0.02)
