"""What the commands are run on: a page of text, a tiny model with its tokenizer, recipes and data, all of it local.

Nothing of revformers is used, so that its modules can move.
"""

import json
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lab.text import WORDS, sentences

TRAINING = {"per_device_train_batch_size": 2, "logging_steps": 2, "eval_steps": 4, "save_steps": 4}
TRAINING |= {"max_steps": 4, "arguments": {"use_cpu": True}}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "resid_pdrop": 0.1}
LLAMA = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": 16, "max_position_embeddings": 64}

RECIPES = {
    "pretrain.yaml": {
        "model": {"architecture": "gpt2", "config": GPT2},
        "dynamics": {"name": "hamiltonian"},
        "data": {"source": "text.txt", "vocabulary_size": 300, "block_length": 32, "validation_blocks": 4},
        "training": TRAINING,
    },
    "finetune.yaml": {
        "model": {"name": "model"},
        "conversion": {"bits": 1, "sequences": 8},
        "data": {"source": "text.txt", "block_length": 32, "validation_blocks": 4},
        "adapter": {"kind": "lora"},
        "training": TRAINING,
    },
    "bench.yaml": {
        "model": {"config": LLAMA},
        "arms": ["plain_checkpoint", "rebuild"],
        "batch_size": 2,
        "sequence_length": 16,
        "depths": [4],
        "rounds": 1,
        "warm_up_rounds": 0,
        "rounds_at_largest": 1,
    },
}


def write_workspace(directory: Path) -> Path:
    """Write everything into `directory`, the same each time, and return it."""
    chance = random.Random(0)
    text = "".join(sentences(400, chance))
    (directory / "text.txt").write_text(text)
    for name, recipe in RECIPES.items():
        (directory / name).write_text(yaml.safe_dump(recipe))
    (directory / "tool.py").write_text("import sys\nprint(sys.argv, 'revformers' in sys.modules)\n")
    _write_questions(directory / "data" / "piqa", chance)
    _tokenizer(text).save_pretrained(directory / "model")
    _model().save_pretrained(directory / "model")
    return directory


def _write_questions(directory: Path, chance: random.Random) -> None:
    directory.mkdir(parents=True)
    sentences = [[" ".join(chance.choices(WORDS, k=words)) for words in (3, 2, 6)] for _ in range(12)]
    rows = [dict(zip(("goal", "sol1", "sol2"), three, strict=True)) for three in sentences]
    (directory / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "valid-labels.lst").write_text("".join(f"{chance.randrange(2)}\n" for _ in rows))


def _tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


def _model() -> LlamaForCausalLM:
    """Return a network whose updates are small against its states, as those of a trained one are."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    return model
