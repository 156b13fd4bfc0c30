"""Documents of any length into blocks of one length."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from revformers.errors import UserError

DOCUMENTS_AT_ONCE = 1000
"""Documents handed to the tokenizer together, which it spreads over the processor's cores."""


def packed_blocks(
    documents: Iterable[str | None], tokenizer: PreTrainedTokenizerBase, block_length: int, separated: bool
) -> Iterator[np.ndarray]:
    """Yield the tokens of all documents, one after the other, in arrays of shape ``[block_length]``.

    The tokens after the last full block are left out.

    Args:
        documents: the texts; empty ones and None are skipped.
        tokenizer: what turns them into numbers.
        block_length: tokens in a block.
        separated: whether an end-of-sequence token follows every document; not so for the lines of one running text.

    Raises:
        UserError: for separated documents and a tokenizer without an end-of-sequence token.

    """
    if separated and tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no end-of-sequence token to set between the documents; set its eos_token.")
    end = [tokenizer.eos_token_id] if separated else []
    iterator = iter(documents)
    rest = np.empty(0, dtype=np.int64)
    while batch := list(islice(iterator, DOCUMENTS_AT_ONCE)):
        texts = [text for text in batch if text]
        if not texts:
            continue
        # verbose=False: documents longer than the model reads are what packing is for, so no warning
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        tokens = np.concatenate([rest, *(np.asarray(ids + end, dtype=np.int64) for ids in encoded)])
        whole = len(tokens) // block_length * block_length
        yield from tokens[:whole].reshape(-1, block_length)
        rest = tokens[whole:]


def first_blocks(
    name: str,
    documents: Iterable[str | None],
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    length: int,
    separated: bool,
) -> torch.Tensor:
    """Return the first blocks of `documents`, int64[number, length], fewer rows where there is less text.

    Args:
        name: what messages call the text.
        documents: the texts; empty ones and None are skipped.
        tokenizer: the model's.
        number: blocks to return.
        length: tokens in a block.
        separated: whether an end-of-sequence token follows every document.

    Raises:
        UserError: for text that does not fill a block, or separated documents and a tokenizer without an
            end-of-sequence token.

    """
    blocks = list(islice(packed_blocks(documents, tokenizer, length, separated), number))
    if not blocks:
        raise UserError(f"{name} does not fill one block of {length} tokens; give more text, or a smaller length.")
    return torch.stack([torch.from_numpy(block) for block in blocks])


def with_labels(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return a batch of blocks as int64 tensors of shape ``[batch, block_length]``, with the labels of a causal model.

    The labels are the input itself, which transformers' models shift. They are added when a block is read, since stored
    they would double the size of the data.
    """
    input_ids = torch.as_tensor(np.asarray(batch["input_ids"], dtype=np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}
