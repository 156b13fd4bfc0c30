"""A model that reads 48 tokens, its tokenizer, and a page of data for every local task."""

import json
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from revformers.training.data.tokenizer import train_tokenizer

WORDS = ["cage", "paper", "water", "inches", "bedding", "dish", "bottle", "strip", "guinea", "pig", "drawer", "wood"]


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


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_tokenizer():
    return train_tokenizer([" ".join(WORDS) + " Question: Answer: How many are there? and\n0123456789#."], 300)


def tiny_model(positions=48):
    torch.manual_seed(0)
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
