import numpy as np
import pytest
import torch

from revformers.data import packing
from revformers.data.packing import packed_blocks, with_labels
from revformers.data.tokenizer import train_tokenizer

DOCUMENTS = ["one two three", None, "", "four", "five six seven eight nine"] * 5


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


def test_the_lines_of_a_text_are_not_separated(tokenizer):
    lines = ["one two\n", "\n", "three\n"] * 4
    blocks = list(packed_blocks(lines, tokenizer, 5, separated=False))
    assert "".join(lines).startswith(tokenizer.decode(np.concatenate(blocks)))


def test_too_little_text_gives_no_block(tokenizer):
    assert list(packed_blocks(["one"], tokenizer, 50, separated=True)) == []


def test_labels_are_the_input():
    batch = with_labels({"input_ids": np.array([[1, 2], [3, 65_535]], dtype=np.uint16)})
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[1, 2], [3, 65_535]]
    assert torch.equal(batch["labels"], batch["input_ids"])
