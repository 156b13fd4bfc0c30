"""Preparation of text: the blocks of tokens that a model trains on."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from revformers.data.cache import cache_directory, digest
from revformers.data.packing import first_blocks, packed_blocks, with_labels
from revformers.data.section import DataSection
from revformers.data.source import Documents, Split
from revformers.data.sources import open_source
from revformers.data.tokenizer import beginning_of_text, load_tokenizer, train_tokenizer
from revformers.errors import UserError
from revformers.files import written_whole

PREPARATION = 2
"""Version of the steps below; raised when their results change, so that older cached blocks are not used."""


Prepared = tuple[PreTrainedTokenizerFast, datasets.Dataset | datasets.IterableDataset, datasets.Dataset]


def build_datasets(data: DataSection, given: PreTrainedTokenizerFast | None = None, seed: int = 0) -> Prepared:
    """Return the tokenizer, the training blocks and the validation blocks of a body of text.

    Every item of the data sets holds `input_ids` and `labels`, both int64[block_length]. Blocks are stored in the cache
    (`cache.cache_directory`) under a name derived from the text and the settings, so they are prepared once. A streamed
    source is packed while it is read, and its training blocks are an IterableDataset.

    Args:
        data: the source of the text, and the length of a block.
        given: the tokenizer; by default the one that `data` names, otherwise one that is trained on the training text.
        seed: the seed of the order of a streamed source; stored blocks keep the order of the text.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for a source that cannot be read, or text that does not fill a block.

    """
    if given is None and data.tokenizer:
        given = load_tokenizer(data.tokenizer)
    source = open_source(data)
    if data.streaming:
        assert given is not None  # open_source refuses streaming without a tokenizer
        return _streamed(data, source.split(seed), given)
    made_by = given.backend_tokenizer.to_str() if given else [data.vocabulary_size, tokenizers.__version__]
    beginning = beginning_of_text(given, data.add_bos_token) if given else data.add_bos_token
    name = digest(PREPARATION, source.fingerprint(), made_by, data.block_length, beginning)
    prepared = cache_directory() / "blocks" / name
    if not prepared.is_dir():
        with written_whole(prepared, keep=True) as directory:
            _prepare(data, source.split(), given, directory)
    tokenizer = given or load_tokenizer(prepared / "tokenizer")
    training = datasets.load_from_disk(str(prepared / "training"))
    validation = datasets.load_from_disk(str(prepared / "validation"))
    validation = first_of(validation, data.validation_blocks)
    return tokenizer, training.with_transform(with_labels), validation.with_transform(with_labels)


def first_of(dataset: datasets.Dataset, number: int | None) -> datasets.Dataset:
    """Return the first records of a data set, or all of them if it has no more or `number` is None."""
    return dataset if number is None else dataset.select(range(min(number, len(dataset))))


def calibration_blocks(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, sequences: int, held_out: int
) -> tuple[Tensor, Tensor]:
    """Return the first blocks of the training and of the validation part of a source.

    Args:
        data: the source of the text, and the length of a block.
        tokenizer: the model's tokenizer.
        sequences: number of calibration blocks to return.
        held_out: number of validation blocks to return.

    Returns:
        int64[sequences, block_length] and int64[held_out, block_length], or fewer rows if text runs out.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for a source that cannot be read, or text that does not fill a block.

    """
    split = open_source(data).split()
    return (
        first_blocks(
            f"The calibration text in {data.source}",
            split.training,
            tokenizer,
            sequences,
            data.block_length,
            split.separated,
            data.add_bos_token,
        ),
        first_blocks(
            f"The held-out text in {data.source}",
            split.validation,
            tokenizer,
            held_out,
            data.block_length,
            split.separated,
            data.add_bos_token,
        ),
    )


def _prepare(data: DataSection, split: Split, given: PreTrainedTokenizerFast | None, directory: Path) -> None:
    """Write the tokenizer and the blocks into `directory`."""
    tokenizer = given or train_tokenizer(split.training, data.vocabulary_size)
    tokenizer.save_pretrained(directory / "tokenizer")
    for name, documents in (("training", split.training), ("validation", split.validation)):
        blocks = _Blocks(documents, tokenizer, data, split.separated)
        _require_a_block(blocks, name, data)
        scratch = directory / "scratch"
        dataset = datasets.Dataset.from_generator(
            _stored_blocks,
            features=datasets.Features({"input_ids": datasets.List(datasets.Value(_storage_type(tokenizer)))}),
            cache_dir=str(scratch),
            gen_kwargs={"blocks": blocks},
            fingerprint=f"{directory.name}-{name}",
        )
        dataset.save_to_disk(str(directory / name))
        shutil.rmtree(scratch)


def _streamed(data: DataSection, split: Split, tokenizer: PreTrainedTokenizerFast) -> Prepared:
    training = _Blocks(split.training, tokenizer, data, split.separated)
    held_out = _Blocks(split.validation, tokenizer, data, split.separated)
    _require_a_block(training, "training", data)
    _require_a_block(held_out, "validation", data)
    validation = datasets.Dataset.from_dict({"input_ids": list(islice(held_out, data.validation_blocks))})
    stream = datasets.IterableDataset.from_generator(_labelled_blocks, gen_kwargs={"blocks": training})
    return tokenizer, stream, validation.with_transform(with_labels)


class _Blocks:
    """The blocks of a body of text; can be iterated over repeatedly."""

    def __init__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, data: DataSection, separated: bool
    ) -> None:
        self._arguments = (documents, tokenizer, data.block_length, separated, data.add_bos_token)

    def __iter__(self) -> Iterator[np.ndarray]:
        return packed_blocks(*self._arguments)


def _stored_blocks(blocks: _Blocks) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield {"input_ids": block}


def _labelled_blocks(blocks: _Blocks) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield {name: tensor[0] for name, tensor in with_labels({"input_ids": block[None]}).items()}


def _storage_type(tokenizer: PreTrainedTokenizerBase) -> str:
    return "uint16" if len(tokenizer) <= 2**16 else "int32"


def _require_a_block(blocks: _Blocks, name: str, data: DataSection) -> None:
    if next(iter(blocks), None) is None:
        raise UserError(
            f"The {name} text of {data.source} does not fill one block of {data.block_length} tokens; add text or "
            f"shorten data.block_length."
        )
