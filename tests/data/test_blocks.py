import json

import pytest
import torch

from revformers.data import blocks as module
from revformers.data.blocks import build_datasets
from revformers.errors import UserError
from tests.training.tiny import tiny_recipe


def tokens(dataset):
    return torch.cat([item["input_ids"] for item in dataset])


def test_blocks_are_the_text_once(tmp_path):
    recipe = tiny_recipe(tmp_path, {"data.validation_blocks": 1000})
    tokenizer, training, validation = build_datasets(recipe.data)
    text = (tmp_path / "text.txt").read_text()
    written = tokenizer.decode(tokens(training))
    held_out = tokenizer.decode(tokens(validation))
    assert len(tokenizer) <= 300
    assert text.startswith(held_out)
    assert written in text
    lines = text.splitlines(keepends=True)
    assert written.startswith(lines[20])  # a twentieth of 400 lines is held out
    assert len(training[0]["input_ids"]) == len(training[0]["labels"]) == 32
    assert training[0]["input_ids"].dtype == torch.int64


def test_a_second_call_prepares_nothing(tmp_path, monkeypatch, cache):
    recipe = tiny_recipe(tmp_path)
    _, first, _ = build_datasets(recipe.data)
    monkeypatch.setattr(module, "_prepare", None)
    _, second, validation = build_datasets(recipe.data)
    assert torch.equal(tokens(first), tokens(second))
    assert len(validation) == 4  # data.validation_blocks
    assert len(list((cache / "blocks").iterdir())) == 1


@pytest.mark.parametrize("field", ["data.block_length", "data.vocabulary_size", "data.validation_fraction"])
def test_other_settings_are_prepared_anew(tmp_path, cache, field):
    build_datasets(tiny_recipe(tmp_path).data)
    changed = {"data.block_length": 16, "data.vocabulary_size": 280, "data.validation_fraction": 0.5}[field]
    build_datasets(tiny_recipe(tmp_path, {field: changed}).data)
    assert len(list((cache / "blocks").iterdir())) == 2


def test_a_given_tokenizer_is_used_and_a_stream_holds_the_same_text(tmp_path):
    tokenizer, stored, _ = build_datasets(tiny_recipe(tmp_path).data)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"data.tokenizer": str(tmp_path / "tokenizer"), "data.validation_documents": 20}
    given, again, _ = build_datasets(tiny_recipe(tmp_path, options).data)
    assert given.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert torch.equal(tokens(stored), tokens(again))
    _, stream, validation = build_datasets(
        tiny_recipe(tmp_path, {**options, "data.streaming": True, "data.shuffle_buffer": 1}).data
    )
    assert len(validation) == 4
    assert torch.equal(tokens(stream), tokens(stored))
    assert torch.equal(tokens(stream), tokens(stream))
    assert torch.equal(next(iter(stream))["labels"], next(iter(stream))["input_ids"])
    shuffled = tiny_recipe(tmp_path, {**options, "data.streaming": True}).data
    first, second = (tokens(build_datasets(shuffled, seed=seed)[1]) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_blocks_with_a_token_at_their_beginnings_are_stored_apart(tmp_path, cache):
    tokenizer, _, _ = build_datasets(tiny_recipe(tmp_path).data)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = tokenizer.bos_token_id
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": f"the model {n}"}) + "\n" for n in range(400)))
    found = {}
    for choice in ("auto", "always", "never"):
        options = {"data.source": str(source), "data.add_bos_token": choice}
        _, training, validation = build_datasets(tiny_recipe(tmp_path, options).data, tokenizer)
        found[choice] = tokens(training)
        assert (tokens(validation) == start).any() == (choice == "always")
    assert torch.equal(found["auto"], found["never"])  # the tokenizer adds none
    after_end = found["always"].roll(1) == tokenizer.eos_token_id
    assert torch.equal(found["always"][1:] == start, after_end[1:])
    assert len(list((cache / "blocks").iterdir())) == 3


def test_too_little_text_is_named_and_leaves_nothing(tmp_path, cache):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "text.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"training text of .* does not fill one block of 32 tokens"):
        build_datasets(recipe.data)
    assert list((cache / "blocks").iterdir()) == []
