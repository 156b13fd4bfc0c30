import copy

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from revformers.data import packing
from revformers.data.packing import first_blocks, packed_blocks, with_labels
from revformers.data.tokenizer import train_tokenizer

DOCUMENTS = ["one two three", "", "four", "five six seven eight nine"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 270)


@pytest.mark.parametrize("documents_at_once", [1, 3, 1000])
def test_no_token_is_lost_but_the_last_few(tokenizer, monkeypatch, documents_at_once):
    monkeypatch.setattr(packing, "DOCUMENTS_AT_ONCE", documents_at_once)
    blocks = list(packed_blocks(DOCUMENTS, tokenizer, 7, separated=True))
    expected = [number for text in DOCUMENTS if text for number in [*tokenizer(text)["input_ids"], 0]]
    assert {block.shape for block in blocks} == {(7,)}
    assert np.concatenate(blocks).tolist() == expected[: len(expected) // 7 * 7]


def test_one_token_ends_a_document(tokenizer):
    """Of a text that ends with it too, and with a tokenizer that appends it itself."""
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert adding("one")["input_ids"] == [*tokenizer("one")["input_ids"], 0]
    expected = [number for _ in range(8) for number in [*tokenizer("one two")["input_ids"], 0]]
    for text in ("one two", "one two<|endoftext|>"):
        blocks = list(packed_blocks([text] * 8, adding, 7, separated=True))
        assert np.concatenate(blocks).tolist() == expected[: len(expected) // 7 * 7]


def test_the_lines_of_a_text_are_not_separated(tokenizer):
    lines = ["one two\n", "\n", "three\n"] * 4
    blocks = list(packed_blocks(lines, tokenizer, 5, separated=False))
    assert "".join(lines).startswith(tokenizer.decode(np.concatenate(blocks)))


def test_a_token_begins_every_document_or_the_running_text(tokenizer):
    beginning = copy.deepcopy(tokenizer)
    beginning.add_special_tokens({"bos_token": "<s>"})
    start = beginning.bos_token_id
    kept = [text for text in DOCUMENTS if text]
    with_token = [n for text in kept for n in [start, *tokenizer(text)["input_ids"], 0]]
    running = [start, *(n for text in kept for n in tokenizer(text)["input_ids"])]
    without = [n for text in kept for n in [*tokenizer(text)["input_ids"], 0]]
    for separated, choice, expected in (
        (True, "always", with_token),
        (False, "always", running),
        (True, "auto", without),  # this tokenizer has the token and does not add it
        (True, "never", without),
    ):
        blocks = list(packed_blocks(DOCUMENTS, beginning, 7, separated, choice))
        assert np.concatenate(blocks).tolist() == expected[: len(expected) // 7 * 7]
        first = first_blocks("Text", DOCUMENTS, beginning, 2, 7, separated, choice)
        assert first.tolist() == [block.tolist() for block in blocks[:2]]


def test_too_little_text_gives_no_block(tokenizer):
    assert list(packed_blocks(["one"], tokenizer, 50, separated=True)) == []


def test_labels_are_the_input():
    batch = with_labels({"input_ids": np.array([[1, 2], [3, 65_535]], dtype=np.uint16)})
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[1, 2], [3, 65_535]]
    assert torch.equal(batch["labels"], batch["input_ids"])
