"""A model that reads 48 tokens, its tokenizer, and a page of data for every local task."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revformers.data.tokenizer import train_tokenizer

WORDS = ["cage", "paper", "water", "inches", "bedding", "dish", "bottle", "strip", "guinea", "pig", "drawer", "wood"]

SHARED = Path(os.environ.get("REVFORMERS_SHARED") or Path(__file__).parents[4] / "shared")
SHARED_DATA = SHARED / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the shared data")


def sentence(chance, words):
    return " ".join(chance.choices(WORDS, k=words))


def write_data(directory, questions=12):
    """Write every local task's files below `directory`, and return it."""
    chance = random.Random(0)
    for name in ("piqa", "gsm8k", "wikitext-2"):
        (directory / name).mkdir(parents=True)
    rows = [
        {"goal": sentence(chance, 3), "sol1": sentence(chance, 2), "sol2": sentence(chance, 6)}
        for _ in range(questions)
    ]
    write_rows(directory / "piqa/valid.jsonl", rows)
    (directory / "piqa/valid-labels.lst").write_text("".join(f"{chance.randrange(2)}\n" for _ in rows))
    for file in (
        "arc/arc_easy.jsonl",
        "arc/arc_challenge.jsonl",
        "openbookqa/test.jsonl",
        "winogrande/validation.jsonl",
    ):
        (directory / file).parent.mkdir(exist_ok=True)
        write_rows(directory / file, [_question(chance, file) for _ in range(questions)])
    for split in ("train", "test"):
        rows = [
            {"question": f"How many {word} are there?", "answer": f"{n} and {n}.\n#### {n}"}
            for n, word in enumerate(WORDS)
        ]
        write_rows(directory / f"gsm8k/{split}.jsonl", rows)
    text = "".join(
        f" \n = {word} = \n \n {sentence(chance, 30)} . \n = = Use = = \n {sentence(chance, 10 * number)} @-@ end . \n"
        for number, word in enumerate(WORDS[:6], start=1)
    )
    (directory / "wikitext-2/test.txt").write_text(text)
    return directory


def _question(chance, file):
    """Return one question of a file: a sentence with a blank, or a question with three or four choices."""
    if file.startswith("winogrande"):
        options = {"option1": sentence(chance, 1), "option2": sentence(chance, 2)}
        text = f"{sentence(chance, 2)} _ {sentence(chance, 3)}"
        return {"sentence": text, **options, "answer": chance.choice("12")}
    choices = [sentence(chance, chance.randint(1, 5)) for _ in range(chance.randint(3, 4))]
    return {"question": sentence(chance, 3), "choices": choices, "answer": chance.randrange(len(choices))}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_tokenizer():
    return train_tokenizer([" ".join(WORDS) + " Question: Answer: How many are there? and\n0123456789#."], 300)


def tiny_model(positions=48, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def damaged(model):
    """Make every prediction too sure of itself."""
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return model
