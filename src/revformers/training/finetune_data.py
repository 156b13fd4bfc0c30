"""The data of a fine-tuning run: text in blocks, prompts with completions, or conversations."""

import math
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

from revformers.data.blocks import build_datasets
from revformers.data.columns import named_kind, text_of
from revformers.data.packing import packed_blocks
from revformers.data.placed_records import Record
from revformers.data.source import Row, Rows
from revformers.data.sources import open_source
from revformers.errors import UserError, reason_of, require_package
from revformers.training.finetune_recipe import FinetuneDataSection

FORMS = {"prompt_completion": ("prompt", "completion"), "messages": ("messages",)}
"""The forms that TRL's SFTTrainer prepares, and their columns."""


SHAREGPT = "conversations"
"""The column of messages in ShareGPT's form, whose fields are from and value; such messages are read in any column."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}

EXAMPLE = '{prompt: "{instruction}\\n{input}\\n", completion: output}'


JSON_COLUMNS = hasattr(datasets, "Json")
"""Whether this version of `datasets` stores objects that differ in their fields."""


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
    source = open_source(data.records())
    first = source.first_records()
    named = list({name: None for record in first for name in record})
    form = data.form if data.form != "auto" else _form({*named, *data.columns})
    if form == "text":
        if data.columns:
            raise UserError("data.columns does not apply to text; set data.text_column.")
        if data.text_column not in named:
            raise UserError(
                f"{data.source} has no column {data.text_column!r}; its columns are {', '.join(named)}. Set "
                f"data.text_column to the column that holds the text, or data.columns to those of prompts and "
                f"completions, such as {EXAMPLE}."
            )
        _, training, validation = build_datasets(data.records(), tokenizer)
        return FinetuneData(form, training, validation)
    if data.add_bos_token != "auto":
        raise UserError("data.add_bos_token applies to text; the tokenizer begins prompts and conversations as usual.")
    origins = {name: data.columns.get(name, name) for name in FORMS[form]}
    if form == "messages" and not data.columns and "messages" not in named and SHAREGPT in named:
        origins = {"messages": SHAREGPT}
    for name, origin in origins.items():
        _check_column(name, origin, named, data.source)
    conversational = form == "messages" or isinstance(first[0].get(origins["prompt"]), list)
    _check_tokenizer(tokenizer, conversational)
    row: Row = partial(_text_row, origins=origins)
    if conversational:
        row = partial(_conversation_row, origins=origins, tokenizer=tokenizer)
    kept = Rows(
        row,
        FORMS[form],
        [origins, conversational, tokenizer.chat_template],
        _features(FORMS[form], conversational),
    )
    training, validation = source.rows(kept)
    if data.validation_blocks:
        validation = validation.select(range(min(data.validation_blocks, len(validation))))
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
        # a chat template writes the tokens that begin and end a conversation
        templated = not isinstance(data.training[0][FORMS[data.form][0]], str)
        packed = packed_blocks(texts, tokenizer, block_length, not templated, "never" if templated else "auto")
        blocks = [torch.from_numpy(block) for block in islice(packed, sequences)]
    if not blocks:
        raise UserError(
            f"The training data is too short for one block of {block_length} tokens to fit the conversion to; shorten "
            f"data.block_length."
        )
    return torch.stack(blocks)


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
            what = f"of {len(before)} {name} records have no trained token in their first {block_length} tokens"
            if not len(after):
                raise UserError(f"All {what}; raise data.block_length, or shorten the prompts.")
            sentences.append(f"{dropped} {what}, and are left out; a larger data.block_length keeps them.")
    return sentences


def _form(columns: set[str]) -> str:
    """Return the form that columns of these names suggest."""
    found = next((form for form, names in FORMS.items() if columns.issuperset(names)), "text")
    return "messages" if found == "text" and SHAREGPT in columns else found


def _features(names: tuple[str, ...], conversational: bool) -> datasets.Features | None:
    """Return the types of the columns, or None to infer them: what messages hold besides their text differs."""
    if not conversational:
        return datasets.Features({name: datasets.Value("string") for name in names})
    return datasets.Features({name: datasets.List(datasets.Json()) for name in names}) if JSON_COLUMNS else None


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
    """Return the columns that a template names; an empty list for the name of a column.

    Raises:
        ValueError: for what is no template, and for formats, conversions, attributes and items, which change a text.

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


def _conversation_row(
    place: object, record: Record, origins: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> Record:
    """Return the messages of a record, or its prompt and completion, which are messages too."""
    row = {}
    for name, origin in origins.items():
        if not isinstance(turns := record.get(origin), list) or not turns:
            found = "an empty list" if turns == [] else named_kind(turns)
            raise UserError(f"{place} holds {found} in its column {origin!r}, not a list of messages.")
        row[name] = [_message(f"{place}, message {number}", turn) for number, turn in enumerate(turns, start=1)]
    *_, answers = row.values()
    if not any(turn["role"] == "assistant" for turn in answers):
        raise UserError(f"{place} has no turn of the assistant to train on; remove it.")
    try:
        tokenizer.apply_chat_template([turn for turns in row.values() for turn in turns], tokenize=False)
    except Exception as error:  # a template can raise anything
        raise UserError(f"The chat template cannot write {place}: {reason_of(error)}.") from error
    return row


def _message(place: str, turn: Any) -> Record:
    """Return a turn as role, content and what else it holds; raise UserError if it has no role or no content."""
    if not isinstance(turn, dict):
        raise UserError(f"{place}, is {named_kind(turn)}, not an object with role and content.")
    # columns of one type hold null for what a message lacks
    message = {name: value for name, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        speaker = message["from"]
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise UserError(f"{place}, is from {speaker!r}; the speakers are {', '.join(SHAREGPT_ROLES)}.")
        message = {"role": SHAREGPT_ROLES[speaker], "content": message.get("value")}
    if not isinstance(message.get("role"), str):
        raise UserError(f"{place}, has no role; a message has role and content, or from and value.")
    _check_numbers(place, message)
    content = message.get("content")
    if isinstance(content, list):  # a template of text alone would write it as Python does
        content = "".join(_text_of_part(place, part) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"{place}, holds {named_kind(content)} as its content, not text.")
    return {**message, "content": content}


def _text_of_part(place: str, part: Any) -> str:
    """Return the text of a part of a message's content; raise UserError if it is none."""
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise UserError(f'{place}, has a part that is no text; a part is {{"type": "text", "text": ...}}.')
    return part["text"]


def _check_numbers(place: str, value: Any) -> None:
    """Raise UserError for a number in a message that `datasets` would store as null or as text."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(place, item)
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
        raise UserError(f"{place}, holds a number that is not finite or has more than 64 bits.")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, conversational: bool) -> None:
    """Raise UserError if the tokenizer cannot encode a record, or end it."""
    if tokenizer.eos_token is None:
        raise UserError("The tokenizer has no end-of-sequence token to end a completion with; set model.tokenizer.")
    if conversational and not tokenizer.chat_template:
        raise UserError(
            "The data holds conversations, but the tokenizer has no chat template to render them; set model.tokenizer "
            "to one that has."
        )


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
