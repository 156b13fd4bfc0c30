import json
import shutil

import pytest
import yaml

from revformers.data.tokenizer import train_tokenizer
from tests.docs.pages import PAGES, ROOT
from tests.lab.evaluation.tiny import tiny_model, write_data
from tests.training.tiny_finetune import TEMPLATE


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A directory with a small model, recipes, texts and questions by the names of the pages, and an empty cache."""
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    recipe["model"]["config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    recipe["model"]["config"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    recipe["data"] |= {"source": "text.txt", "vocabulary_size": 300, "block_length": 32, "validation_blocks": 8}
    recipe["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2}
    recipe["sample"]["max_new_tokens"] = 4
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipes/quickstart.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name in ("text.txt", "other.txt"):
        (tmp_path / name).write_text(PAGES["README.md"] * 20, encoding="utf-8")
    records = [
        {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(60)
    ]
    (tmp_path / "instructions.json").write_text(json.dumps(records), encoding="utf-8")
    (tmp_path / "train.py").touch()
    write_data(tmp_path / "data", questions=3)
    tokenizer = train_tokenizer([PAGES["README.md"]], 300)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "pretrained")
    model = tiny_model(positions=256)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    return tmp_path
