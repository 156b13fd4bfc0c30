"""The data of a fine-tuning run: text in blocks, prompts with completions, or conversations."""

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from revformers.data.blocks import build_datasets, first_of
from revformers.data.columns import missing_column, nested_records, text_of
from revformers.data.packing import first_blocks
from revformers.data.placed_records import Record
from revformers.data.source import MakeRow, RowMaker
from revformers.data.sources import open_source
from revformers.data.tokenizer import check_end_of_sequence
from revformers.errors import UserError, counted, require_package
from revformers.training.chat_template import ChatTemplate
from revformers.training.conversations import TOOLS, conversation_row
from revformers.training.finetune_recipe import FinetuneDataSection

FORMS = {"prompt_completion": ("prompt", "completion"), "messages": ("messages",)}
"""The forms that TRL's SFTTrainer prepares, and their columns."""

FORM_WORDS = {"text": "text", "prompt_completion": "prompts with completions", "messages": "conversations"}

SHAREGPT = "conversations"
"""The column of messages in ShareGPT's form, whose fields are from and value; such messages are read in any column."""

ROWS = 4
"""Version of the making of rows; raised when its results change, so that older cached ones are not used."""

EXAMPLE = '{prompt: "{instruction}\\n{input}\\n", completion: output}'


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
    unknown = [name for name in data.columns if not any(name in names for names in FORMS.values())]
    if unknown:
        raise UserError(f"data.columns takes prompt, completion and messages, not {unknown[0]!r}.")
    source = open_source(data.source_section())
    first = source.first_records()
    named = list({name: None for record in first for name in record})
    form = data.form if data.form != "auto" else _form({*named, *data.columns})
    if form == "text":
        if data.columns:
            raise UserError("data.columns does not apply to text; set data.text_column.")
        if data.text_column not in named:
            raise UserError(
                f"{data.source} {missing_column(data.text_column, named)} "
                + (
                    _settings_of_known_form(data, named)
                    or f"Set data.text_column to the column that holds the text, or data.columns to those of prompts "
                    f"and completions, such as {EXAMPLE}.{nested_records(first[0])}"
                )
            )
        _, training, validation = build_datasets(data.source_section(), tokenizer)
        return FinetuneData(form, training, validation)
    if data.add_bos_token != "auto":
        raise UserError("data.add_bos_token applies to text; the tokenizer begins prompts and conversations as usual.")
    origins = {name: data.columns.get(name, name) for name in FORMS[form]}
    if form == "messages" and not data.columns and "messages" not in named and SHAREGPT in named:
        origins = {"messages": SHAREGPT}
    for name, origin in origins.items():
        _check_column(name, origin, named, data, first[0])
    conversational = form == "messages" or isinstance(first[0].get(origins["prompt"]), list)
    _check_tokenizer(tokenizer, conversational)
    make: MakeRow = partial(_text_row, origins=origins)
    cache_key = [ROWS, origins, conversational]
    assistant_only = False
    if conversational:
        template = _chat_template(form, tokenizer)
        make = partial(conversation_row, origins=origins, template=template, typed=source.typed)
        cache_key += [tokenizer.chat_template, template.replacement, template.assistant_only]
        assistant_only = template.assistant_only
    training, validation = source.rows(RowMaker(make, cache_key, _features(FORMS[form], conversational)))
    validation = first_of(validation, data.validation_blocks)
    return FinetuneData(form, training, validation, assistant_only)


def training_blocks(
    data: FinetuneData, tokenizer: PreTrainedTokenizerBase, sequences: int, block_length: int
) -> Tensor:
    """Return the first blocks of the training data, int64[sequences, block_length], or fewer rows if data runs out.

    Prompts with completions and conversations are rendered as text and packed one after the other.

    Raises:
        UserError: for data that do not fill a block.

    """
    if data.form == "text":
        return torch.stack([block["input_ids"] for block in islice(data.training, sequences)])
    # a chat template writes the tokens that begin and end a conversation
    templated = not isinstance(data.training[0][FORMS[data.form][0]], str)
    return first_blocks(
        "The training data to fit the conversion to",
        _written(data, tokenizer),
        tokenizer,
        sequences,
        block_length,
        separated=not templated,
        add_bos_token="never" if templated else "auto",
    )


def dropped_records(data: FinetuneData, training: Any, validation: Any, block_length: int) -> list[str]:
    """Return a sentence for each part of the data in which truncation left records without a trained token.

    Args:
        data: the data before truncation.
        training: the data that the SFTTrainer made of it; it drops such records.
        validation: the same for the validation data.
        block_length: the number of tokens that records are truncated to.

    Raises:
        UserError: if no record is left.

    """
    sentences = []
    for name, before, after in (("training", data.training, training), ("validation", data.validation, validation)):
        if dropped := len(before) - len(after):
            have, their, are, them = ("has", "its", "is", "it") if dropped == 1 else ("have", "their", "are", "them")
            if not len(after):
                none = f"None of the {len(before):,} {name} records has a"
                if len(before) == 1:
                    none = f"The only {name} record has no"
                raise UserError(
                    f"{none} trained token in its first {block_length} tokens; raise data.block_length, or shorten the "
                    f"prompts."
                )
            sentences.append(
                f"{dropped} of {counted(len(before), f'{name} record')} {have} no trained token in {their} first "
                f"{block_length} tokens, and {are} left out; a larger data.block_length keeps {them}."
            )
    return sentences


def _form(columns: set[str]) -> str:
    """Return the form that columns of these names suggest."""
    found = next((form for form, names in FORMS.items() if columns.issuperset(names)), "text")
    return "messages" if found == "text" and SHAREGPT in columns else found


def _features(names: tuple[str, ...], conversational: bool) -> datasets.Features:
    """Return the types of the columns; what messages hold besides their text differs."""
    if not conversational:
        return datasets.Features({name: datasets.Value("string") for name in names})
    messages = {name: datasets.List(datasets.Json()) for name in names}
    return datasets.Features({**messages, TOOLS: datasets.Value("string")})


def _check_column(name: str, origin: Any, named: list[str], data: FinetuneDataSection, first: Record) -> None:
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
                f"{data.source} {missing_column(column, named)} "
                + (
                    _settings_of_known_form(data, named)
                    or f"Set data.columns.{name} to the column that holds the {name}.{nested_records(first)}"
                )
            )


def _settings_of_known_form(data: FinetuneDataSection, named: list[str]) -> str:
    """Return a sentence about settings that hide the form of records with these columns; empty if none do."""
    form = _form(set(named))
    if form == "text" and data.text_column not in named:
        return ""
    changes = ["remove data.columns"] * bool(data.columns)
    changes += [f"set data.form to {form}"] * (data.form not in ("auto", form))
    return f"The records hold {FORM_WORDS[form]}; {' and '.join(changes)}." if changes else ""


def _fields(origin: str) -> list[str]:
    """Return the columns that a template names; an empty list for the name of a column.

    Raises:
        ValueError: for what is not a template, and for formats, conversions, attributes and items, which change a text.

    """
    fields = []
    for _, field, form, conversion in string.Formatter().parse(origin):
        if field is not None:
            if form or conversion or not field or field.isdecimal() or any(sign in field for sign in ".["):
                raise ValueError(f"a column stands in it as {{name}} alone, and {origin!r} has more")
            fields.append(field)
    return fields


def _text_row(place: object, record: Record, origins: Mapping[str, str]) -> Record:
    """Return the prompt and the completion of a record."""
    return {name: _text(place, record, origin, f"data.columns.{name}") for name, origin in origins.items()}


def _text(place: object, record: Record, origin: str, setting: str) -> str:
    """Return the text in a column of a record, or a template with text or whole numbers from columns."""
    fields = _fields(origin)
    if not fields:
        return text_of(place, record, origin, setting)
    for field in fields:
        if type(record.get(field)) is not int:
            text_of(place, record, field, setting)
    return origin.format_map(record)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """Raise UserError if the tokenizer cannot encode a record, or end it."""
    check_end_of_sequence(tokenizer)
    if conversational and not tokenizer.chat_template:
        raise UserError(
            "The data holds conversations, but the tokenizer has no chat template to render them; set model.tokenizer "
            "to one that has."
        )


def import_trl() -> Any:
    """Return the package `trl`, or raise MissingPackageError."""
    return require_package("trl", "finetune", "Training on prompts with completions or conversations")


def _chat_template(form: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return the chat template that the SFTTrainer writes the records of a form with.

    For conversations, it replaces the templates of some families of models by its own, which mark the assistant.
    """
    if form != "messages":
        return ChatTemplate(tokenizer)
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        return ChatTemplate(tokenizer)  # the SFTTrainer looks at the default one
    if ChatTemplate(tokenizer).marks_the_assistant():
        return ChatTemplate(tokenizer, assistant_only=True)
    import_trl()
    from trl.chat_template_utils import get_training_chat_template

    try:
        replacement = get_training_chat_template(tokenizer)
    except ValueError:  # it has none
        replacement = None
    return ChatTemplate(tokenizer, replacement, assistant_only=replacement is not None)


def _written(data: FinetuneData, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the text of every training record."""
    template = _chat_template(data.form, tokenizer)
    for record in data.training:
        parts = [record[name] for name in FORMS[data.form]]
        if isinstance(parts[0], str):
            yield "".join(parts)
        else:
            yield template.write([turn for part in parts for turn in part], json.loads(record[TOOLS]))
