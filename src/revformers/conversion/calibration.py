"""Calibration text: turns the user's text, in any supported form, into the batches that a conversion reads."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from revformers.conversion.measure import Batch
from revformers.data.columns import named_kind, text_of
from revformers.data.packing import first_blocks
from revformers.data.section import AddBosToken, DataSection
from revformers.errors import require_package
from revformers.models.discovery import unwrap

Text = Tensor | Mapping[str, Any] | Iterable[Any] | str | os.PathLike[str]
"""Tokens, batches of tokens, strings, a data set or a path; see `revformers.convert`."""

SET_ASIDE_ONE_IN = 8
"""One in this many calibration sequences is set aside to evaluate the predictors, which are not fitted to it."""

MOST_TOKENS_SET_ASIDE = 4096
"""Largest number of tokens to set aside, but always at least one sequence."""

BATCH_SIZE = 8
"""Sequences per batch, if the caller does not batch them."""


def read_text(
    text: Text | None,
    tokenizer: PreTrainedTokenizerBase | None,
    text_column: str,
    sequences: int,
    length: int,
    add_bos_token: AddBosToken = "auto",
) -> Tensor | Sequence[Batch] | None:
    """Return tokens or batches of tokens; tokens and batches are returned unchanged.

    Args:
        text: see `revformers.convert`.
        tokenizer: the model's tokenizer; needed for strings, files, and data sets without `input_ids`.
        text_column: the column of a data set or a file of records that holds the text.
        sequences: largest number of sequences to read from a data set, strings or a file.
        length: tokens per sequence of strings, a file, or a column of text.
        add_bos_token: see `revformers.convert`.

    Raises:
        FileNotFoundError: for a path that does not exist.
        MissingPackageError: for a path, without the package datasets.
        ValueError: for text without the tokenizer that it needs, empty text, text too short for a sequence, or an
            unsupported form of text.

    """
    if text is None or isinstance(text, Tensor):
        return text
    packer = _Packer(tokenizer, text_column, sequences, length, add_bos_token)
    if isinstance(text, str | os.PathLike):
        # A string is always a path: a guess between text and file name could be wrong without an error.
        if not os.path.exists(text := os.path.expanduser(os.fspath(text))):
            raise FileNotFoundError(
                f"There is no file or directory {text[:100]!r} to read text from; give text itself as a list of "
                f"strings, or a data set of the hub as datasets.load_dataset(...)."
            )
        require_package("datasets", "train", "Reading text from files")
        # imported here: importing `datasets` takes a second, and most conversions do not need it
        from revformers.data.sources import open_files

        files = open_files(DataSection(source=text, text_column=text_column))
        return packer.documents(files.documents(), text, files.separated)
    if hasattr(text, "column_names"):  # a Dataset or an IterableDataset
        return _read_dataset(text, packer)
    if isinstance(text, Mapping):
        if "input_ids" not in text:
            raise ValueError(
                f"Text was given as a mapping of {', '.join(map(str, text))}; give one split of a data set, or "
                f'{{"input_ids": int64[batch, tokens]}}.'
            )
        return [text]
    items = list(text)
    if items and isinstance(items[0], str):
        for number, item in enumerate(items, start=1):
            if not isinstance(item, str):
                raise ValueError(f"Item {number} of the list of strings is {named_kind(item)}, not text.")
        return packer.documents(items, "The list of strings")
    return items


def as_batches(text: Tensor | Sequence[Batch] | None, model: nn.Module) -> list[Batch]:
    """Return tokens as batches on the device of `model`'s embedding.

    Raises:
        ValueError: if there are no tokens, or a causal language model cannot read them without padding.

    """
    if isinstance(text, Tensor):
        if text.dim() != 2 or text.numel() == 0 or text.shape[1] < 2:
            raise ValueError(
                f"Calibration text is int64[sequences, tokens] with two tokens or more a sequence, not "
                f"{list(text.shape)}."
            )
        text = [{"input_ids": chunk} for chunk in text.split(BATCH_SIZE)]
    batches = list(text or [])
    if not batches:
        raise ValueError(
            "There is no calibration text to fit predictors to and to measure losses on; pass some as calibration=, "
            "such as a list of texts with tokenizer=."
        )
    for batch in batches:
        _check(batch)
    embedding: Any = unwrap(model).get_input_embeddings()
    result: list[Batch] = []
    for batch in batches:
        ids = batch["input_ids"].long()
        entries = embedding.weight.shape[0]
        if not 0 <= ids.min() <= ids.max() < entries:
            raise ValueError(
                f"Calibration text holds tokens from {ids.min()} to {ids.max()}, and the model has {entries}; give the "
                f"tokenizer that belongs to the model."
            )
        # offloaded weights are on the meta device until they are used, and accelerate then moves their inputs
        result.append({"input_ids": ids if embedding.weight.is_meta else ids.to(embedding.weight.device)})
    return result


def _check(batch: Any) -> None:
    """Raise ValueError if a causal language model cannot read `batch` without padding."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
        found = f"a mapping of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f'A batch of calibration text is {{"input_ids": int64[batch, tokens]}}, not {found}; give text itself as '
            f"strings, a data set or a path."
        )
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if ids.dim() != 2 or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.is_floating_point():
        kind = str(ids.dtype).removeprefix("torch.")
        raise ValueError(
            f"A batch of calibration text is int64[batch, tokens] with two tokens or more a sequence, not "
            f"{kind}{list(ids.shape)}."
        )
    if mask is not None and not bool(torch.as_tensor(mask).bool().all()):
        raise _padded()


def _read_dataset(dataset: Any, packer: "_Packer") -> Tensor | Sequence[Batch]:
    """Return the first sequences of a Dataset or IterableDataset: its tokens if it has them, otherwise its text."""
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"Text was given as a data set of several splits ({', '.join(dataset)}); choose one, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]."
        )
    # a stream does not always know its columns
    names = dataset.column_names or list(next(iter(dataset), {}))
    if "input_ids" not in names:
        return packer.records(dataset, "The data set")
    rows = list(islice(dataset, packer.sequences))
    if not all(torch.as_tensor(row.get("attention_mask", 1)).bool().all() for row in rows):
        raise _padded()
    batches: list[Batch] = []
    for _, group in groupby((torch.as_tensor(row["input_ids"]) for row in rows), key=lambda ids: ids.shape):
        batches += [{"input_ids": chunk} for chunk in torch.stack(list(group)).split(BATCH_SIZE)]
    return batches


def _padded() -> ValueError:
    return ValueError("Calibration text must not be padded; pack it into blocks of one length.")


@dataclass(frozen=True)
class _Packer:
    """Packs text into int64[sequences, length]."""

    tokenizer: PreTrainedTokenizerBase | None
    column: str
    sequences: int
    length: int
    add_bos_token: AddBosToken

    def records(self, records: Iterable[Mapping[str, Any]], name: str) -> Tensor:
        """Pack the text column of `records`."""
        first = next(iter(records), None)
        if first is None:
            raise ValueError(f"{name} is empty.")

        def text(number: int, record: Mapping[str, Any]) -> str:
            return text_of(f"Record {number} of {name[0].lower()}{name[1:]}", record, self.column)

        text(1, first)  # before the tokenizer is asked for
        return self.documents((text(*numbered) for numbered in enumerate(records, start=1)), name)

    def documents(self, documents: Iterable[str], name: str, separated: bool = True) -> Tensor:
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                f"{name} holds text and needs a tokenizer; pass the model's own as tokenizer=, such as "
                f"transformers.AutoTokenizer.from_pretrained(...)."
            )
        return first_blocks(name, documents, self.tokenizer, self.sequences, self.length, separated, self.add_bos_token)


def number_of_tokens(batches: Sequence[Batch]) -> int:
    """Return the number of tokens in all batches."""
    return sum(batch["input_ids"].numel() for batch in batches)


def last_sequences(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Return the last sequences of the text with at most `tokens` tokens in total, but at least one sequence."""
    sequences = [row for batch in batches for row in batch["input_ids"].split(1)]
    number = len(sequences)
    while number > 1 and sum(row.numel() for row in sequences[-number:]) > tokens:
        number -= 1
    return [{"input_ids": row} for row in sequences[-number:]]


def split_off(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return the batches without the sequences to set aside, which are the last, and these; see `SET_ASIDE_ONE_IN`."""
    sequences = [row for batch in batches for row in batch["input_ids"].split(1)]
    number = 0
    if len(sequences) > 1:
        number = min(max(len(sequences) // SET_ASIDE_ONE_IN, 1), len(last_sequences(batches, MOST_TOKENS_SET_ASIDE)))
    fitted = list(batches)
    set_aside: list[Batch] = []
    while number:
        ids = fitted.pop()["input_ids"]
        taken = min(number, len(ids))
        set_aside.append({"input_ids": ids[len(ids) - taken :]})
        if taken < len(ids):
            fitted.append({"input_ids": ids[: len(ids) - taken]})
        number -= taken
    return fitted, set_aside
