"""Calibration and held-out text for a conversion, and text that a model writes itself."""

from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from revformers.training.data.packing import packed_blocks
from revformers.training.data.sources import Documents, open_source
from revformers.training.errors import RecipeError
from revformers.training.recipe import DataSection


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
        RecipeError: for a source that cannot be read, or text that does not fill a block.

    """
    split = open_source(data).split()
    if split.separated and tokenizer.eos_token_id is None:
        raise RecipeError("The model's tokenizer has no end-of-sequence token to set between the documents.")
    return (
        _blocks("calibration", split.training, sequences, data, tokenizer, split.separated),
        _blocks("held-out", split.validation, held_out, data, tokenizer, split.separated),
    )


def sampled_blocks(model: PreTrainedModel, sequences: int, length: int, seed: int) -> Tensor:
    """Return int64[sequences, length] of tokens that `model` writes from its beginning-of-sequence token.

    The random state of the caller is neither used nor changed.
    """
    start = torch.full((sequences, 1), model.config.bos_token_id, device=model.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens: Tensor = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_length=length,
            min_length=length,
            max_new_tokens=None,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
    return tokens


def _blocks(
    name: str,
    documents: Documents,
    number: int,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    separated: bool,
) -> Tensor:
    blocks = list(islice(packed_blocks(documents, tokenizer, data.block_length, separated), number))
    if not blocks:
        raise RecipeError(f"The {name} text in {data.source} does not fill one block of {data.block_length} tokens.")
    return torch.stack([torch.from_numpy(block) for block in blocks])
