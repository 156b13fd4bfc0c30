"""Packing of documents of any length into blocks of one length."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from revformers.data.section import AddBosToken
from revformers.data.tokenizer import beginning_of_text, check_end_of_sequence
from revformers.errors import UserError

DOCUMENTS_AT_ONCE = 1000
"""Documents per call of the tokenizer, which distributes them over the processor's cores."""


def packed_blocks(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    separated: bool,
    add_bos_token: AddBosToken = "auto",
) -> Iterator[np.ndarray]:
    """Yield the tokens of all documents, one after the other, as int64[block_length].

    The tokens after the last full block are left out.

    Args:
        documents: the texts; empty ones are skipped.
        tokenizer: the tokenizer.
        block_length: tokens in a block.
        separated: whether one end-of-sequence token ends every document; False for the lines of one running text.
        add_bos_token: whether a beginning-of-sequence token precedes every document, or the running text; see
            `tokenizer.beginning_of_text`.

    Raises:
        UserError: for separated documents and a tokenizer without an end-of-sequence token, or for a tokenizer without
            the beginning-of-sequence token that is asked for.

    """
    if separated:
        check_end_of_sequence(tokenizer)
    beginning = beginning_of_text(tokenizer, add_bos_token)
    end: list[int] = [tokenizer.eos_token_id] if separated else []
    iterator = iter(documents)
    rest = np.empty(0, dtype=np.int64)
    if not separated:
        rest, beginning = np.asarray(beginning, dtype=np.int64), []
    while batch := list(islice(iterator, DOCUMENTS_AT_ONCE)):
        texts = [text for text in batch if text]
        if not texts:
            continue
        # verbose=False: no warning about documents longer than the model's maximum, because they are cut into blocks
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if end:  # a text may hold it already
            encoded = [ids if ids[-1:] == end else ids + end for ids in encoded]
        tokens = np.concatenate([rest, *(np.asarray(beginning + ids, dtype=np.int64) for ids in encoded)])
        whole = len(tokens) // block_length * block_length
        yield from tokens[:whole].reshape(-1, block_length)
        rest = tokens[whole:]


def first_blocks(
    name: str,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    length: int,
    separated: bool,
    add_bos_token: AddBosToken = "auto",
) -> torch.Tensor:
    """Return the first blocks of `documents`, int64[number, length], or fewer rows if text runs out.

    Args:
        name: the name of the text in messages.
        documents: the texts; empty ones are skipped.
        tokenizer: the model's tokenizer.
        number: number of blocks to return.
        length: tokens in a block.
        separated: whether an end-of-sequence token follows every document.
        add_bos_token: as for `packed_blocks`.

    Raises:
        UserError: for text that does not fill a block, and as `packed_blocks`.

    """
    blocks = list(islice(packed_blocks(documents, tokenizer, length, separated, add_bos_token), number))
    if not blocks:
        raise UserError(f"{name} does not fill one block of {length} tokens; give more text, or shorten the blocks.")
    return torch.stack([torch.from_numpy(block) for block in blocks])


def with_labels(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a batch of blocks with the labels of a causal model, both int64[batch, block_length].

    The labels equal the input, because transformers' models shift them. They are added when a block is read; storing
    them would double the size of the data.
    """
    input_ids = torch.as_tensor(np.asarray(batch["input_ids"], dtype=np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}
