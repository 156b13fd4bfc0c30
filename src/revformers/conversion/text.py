"""Calibration and held-out text for a conversion."""

from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from revformers.data.packing import packed_blocks
from revformers.data.section import DataSection
from revformers.data.sources import Documents, open_source
from revformers.errors import UserError


def calibration_blocks(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, sequences: int, held_out: int
) -> tuple[Tensor, Tensor]:
    """Return the first blocks of the training and of the validation part of a source.

    Args:
        data: where the text comes from, and the length of a block.
        tokenizer: the model's.
        sequences: calibration blocks to return.
        held_out: validation blocks to return.

    Returns:
        int64[sequences, block_length] and int64[held_out, block_length], fewer rows where there is less text.

    Raises:
        FileNotFoundError: for a local file that is not there.
        UserError: for a source that cannot be read, or text that does not fill a block.

    """
    split = open_source(data).split()
    if split.separated and tokenizer.eos_token_id is None:
        raise UserError("The model's tokenizer has no end-of-sequence token to set between the documents.")
    return (
        first_blocks(
            f"The calibration text in {data.source}",
            split.training,
            tokenizer,
            sequences,
            data.block_length,
            split.separated,
        ),
        first_blocks(
            f"The held-out text in {data.source}",
            split.validation,
            tokenizer,
            held_out,
            data.block_length,
            split.separated,
        ),
    )


def first_blocks(
    name: str,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    number: int,
    length: int,
    separated: bool,
) -> Tensor:
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
