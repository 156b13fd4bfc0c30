"""The data of a fine-tuning run: text in blocks, prompts with completions, or conversations."""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from revformers.data.blocks import build_datasets
from revformers.data.packing import packed_blocks
from revformers.data.sources import open_source
from revformers.errors import UserError, require_package
from revformers.training.finetune_recipe import FinetuneDataSection

FORMS = {"prompt_completion": ("prompt", "completion"), "messages": ("messages",)}
"""The forms that TRL's SFTTrainer prepares, and their columns."""


@dataclass(frozen=True)
class FinetuneData:
    """Training and validation data.

    Attributes:
        form: text, prompt_completion or messages.
        training: for text, blocks with input_ids and labels, int64[block_length]; otherwise records with the columns of
            the form.
        validation: the same, held out.
        assistant_only: whether the loss of conversations covers only what the assistant says.

    """

    form: str
    training: Any
    validation: Any
    assistant_only: bool = False


def load_finetune_data(data: FinetuneDataSection, tokenizer: PreTrainedTokenizerBase) -> FinetuneData:
    """Return the data that the section of a recipe describes.

    Raises:
        FileNotFoundError: for a missing local file.
        UserError: for a source that cannot be read, a missing column, or a tokenizer that cannot encode the records.

    """
    if not data.source:
        raise UserError("The recipe names no data to train on; set data.source.")
    unknown = [name for name in data.columns if not any(name in names for names in FORMS.values())]
    if unknown:
        raise UserError(f"data.columns takes prompt, completion and messages, not {unknown[0]!r}.")
    source = open_source(data.records())
    records, held_out = source.records()
    named = records.column_names
    form = data.form if data.form != "auto" else _form({*named, *data.columns})
    if form == "text":
        if data.columns:
            raise UserError("data.columns does not apply to text; set data.text_column.")
        _, training, validation = build_datasets(data.records(), tokenizer)
        return FinetuneData(form, training, validation)
    for name in FORMS[form]:
        _check_column(name, data.columns.get(name, name), named, data.source)
    if data.validation_blocks:
        held_out = held_out.select(range(min(data.validation_blocks, len(held_out))))
    training, validation = (_mapped(part, form, data.columns) for part in (records, held_out))
    _check_tokenizer(training[0], tokenizer)
    return FinetuneData(form, training, validation, form == "messages" and _marks_the_assistant(tokenizer))


def training_blocks(
    data: FinetuneData, tokenizer: PreTrainedTokenizerBase, sequences: int, block_length: int
) -> Tensor:
    """Return the first blocks of the training data, int64[sequences, block_length], or fewer rows if data runs out.

    Prompts with completions and conversations are rendered as text and packed one after the other.

    Raises:
        UserError: for data that do not fill a block.

    """
    if data.form == "text":
        blocks = [block["input_ids"] for block in islice(data.training, sequences)]
    else:
        texts = _written(data.training, tokenizer)
        packed = packed_blocks(texts, tokenizer, block_length, separated=data.form == "prompt_completion")
        blocks = [torch.from_numpy(block) for block in islice(packed, sequences)]
    if not blocks:
        raise UserError(
            f"The training data is too short for one block of {block_length} tokens to fit the conversion to; shorten "
            f"data.block_length."
        )
    return torch.stack(blocks)


def _form(columns: set[str]) -> str:
    """Return the form that columns of these names suggest."""
    return next((form for form, names in FORMS.items() if columns.issuperset(names)), "text")


def _check_column(name: str, origin: Any, named: list[str], source: str) -> None:
    """Raise UserError if the column `name` cannot be made from the columns of the source."""
    if not isinstance(origin, str):
        raise UserError(f"data.columns.{name} takes the name of a column or a template of columns, not {origin!r}.")
    try:
        wanted = _fields(origin) or [origin]
    except ValueError as error:
        raise UserError(f"data.columns.{name} is not a template of columns: {error}.") from error
    for column in wanted:
        if column not in named:
            raise UserError(
                f"{source} has no column {column!r}; its columns are {', '.join(named)}. Set data.columns.{name} to "
                f"the column that holds the {name}."
            )


def _fields(origin: str) -> list[str]:
    """Return the columns that a template names; an empty list for the name of a column."""
    return [field for _, field, _, _ in string.Formatter().parse(origin) if field is not None]


def _mapped(records: Any, form: str, columns: Mapping[str, str]) -> Any:
    """Return the records with only the columns of `form`."""
    names = FORMS[form]
    origins = {name: columns.get(name, name) for name in names}

    def row(record: dict[str, Any]) -> dict[str, Any]:
        return {
            name: origin.format_map(record) if _fields(origin) else record[origin] for name, origin in origins.items()
        }

    return records.map(row, remove_columns=[name for name in records.column_names if name not in names])


def _check_tokenizer(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer cannot encode a record, or end it."""
    if tokenizer.eos_token is None:
        raise UserError("The tokenizer has no end-of-sequence token to end a completion with; set model.tokenizer.")
    conversational = any(isinstance(value, list) for value in record.values())
    if conversational and not tokenizer.chat_template:
        raise UserError(
            "The data holds conversations, but the tokenizer has no chat template to render them; set model.tokenizer "
            "to one that has."
        )
    if any(not isinstance(value, str | list) for value in record.values()):
        raise UserError(f"{', '.join(record)} of a record must hold text or messages; this one does not: {record}.")


def import_trl() -> Any:
    """Return the package `trl`, or raise MissingPackageError."""
    return require_package("trl", "finetune", "Training on prompts with completions or conversations")


def _marks_the_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template marks the assistant's tokens, or TRL has a replacement that does."""
    if "endgeneration" in str(tokenizer.chat_template):
        return True
    import_trl()
    from trl.chat_template_utils import get_training_chat_template

    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return True


def _written(records: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the text of every record."""
    for record in records:
        parts = [record[name] for name in FORMS["messages" if "messages" in record else "prompt_completion"]]
        if isinstance(parts[0], str):
            yield "".join(parts)
        else:
            yield str(tokenizer.apply_chat_template([turn for part in parts for turn in part], tokenize=False))
