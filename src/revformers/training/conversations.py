"""Records of conversations: messages that the chat template writes whole, or one sentence about what it would not."""

import json
import math
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from revformers.data.columns import named_kind
from revformers.data.placed_records import Record
from revformers.errors import UserError, reason_of
from revformers.training.chat_template import ChatTemplate

TOOLS = "tools"
"""The column of the tools that a conversation may call, which TRL passes to the chat template; rows hold it as JSON."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}

UNUSED_COLUMNS = {
    "system": "write it as a first message with the role system",
    "functions": "write them as tools, in a column of that name",
    "chat_template_kwargs": "write the values into the chat template",
}
"""Columns beside messages that would change the text of a conversation, and what to do instead."""

METADATA = ("id", "name", "tool_call_id", "timestamp")
"""Fields of messages that many chat templates do not write, for they are not what somebody says."""

WITHOUT_EFFECT = {"weight": 1, "train": True}
"""Fields of messages in other tools' data, with values that ask for what is done anyway."""


def conversation_row(
    place: object, record: Record, origins: Mapping[str, str], template: ChatTemplate, typed: bool
) -> Record:
    """Return the messages of a record, or its prompt and completion, which are messages too, and its tools.

    Args:
        place: its str() names the record in messages.
        record: the record.
        origins: the columns that hold the messages.
        template: the chat template that will write them.
        typed: whether columns have one type, so that null stands for what an object lacks.

    Raises:
        UserError: for what is not a message, and for what the template would leave out
            or would write without its being there.

    """
    row: dict[str, Any] = {}
    placed: dict[str, Record] = {}
    for name, origin in origins.items():
        if not isinstance(turns := record.get(origin), list) or not turns:
            found = "an empty list" if turns == [] else named_kind(turns)
            raise UserError(f"{place} holds {found} in its column {origin!r}, not a list of messages.")
        beginning = f"{place}, message" if len(origins) == 1 else f"{place}, {name}, message"
        of_column = {f"{beginning} {number}": turn for number, turn in enumerate(turns, start=1)}
        placed |= {where: _message(where, turn, typed) for where, turn in of_column.items()}
        row[name] = [placed[where] for where in of_column]
    *_, answers = row.values()
    if not any(turn["role"] == "assistant" for turn in answers):
        raise UserError(f"{place} has no turn of the assistant to train on; remove it.")
    for column, remedy in UNUSED_COLUMNS.items():
        if record.get(column) and column not in origins.values():
            raise UserError(f"{place} has a column {column!r}, which is not written into conversations; {remedy}.")
    tools = _tools(place, record.get(TOOLS), typed)
    try:
        _check_written(place, placed, tools, template)
        if template.assistant_only:
            _check_trained(place, list(placed.values()), tools, template)
    except UserError:
        raise
    except Exception as error:  # a template can raise anything
        raise UserError(f"The chat template cannot write {place}: {reason_of(error)}.") from error
    return {**row, TOOLS: json.dumps(tools)}


def _check_written(
    place: object, placed: Mapping[str, Record], tools: list[Any] | None, template: ChatTemplate
) -> None:
    """Raise UserError if the template leaves out the text of a message, a field of it, or the tools.

    Args:
        place: the place of the record.
        placed: the messages after their places.
        tools: the tools.
        template: the chat template.

    """
    messages = list(placed.values())
    text = template.write(messages, tools)
    if tools and template.write(messages, []) == text:
        raise UserError(
            f"{place} has tools, which the chat template does not write; remove the column {TOOLS!r}, or set "
            f"model.tokenizer to one whose template writes them."
        )
    # A template may trim a text, or leave out the reasoning at its beginning, but not its end.
    ends = [f"revformers{number}end" if turn["content"] else "" for number, turn in enumerate(messages)]
    ended = [
        {**turn, "content": turn["content"] + end} if end else turn for turn, end in zip(messages, ends, strict=True)
    ]
    with_ends = template.write(ended, tools)
    for (where, turn), end in zip(placed.items(), ends, strict=True):
        if end not in with_ends:
            raise UserError(
                f"{where}, has text in the role {turn['role']!r} that the chat template leaves out; correct the role "
                f"or the order of the messages, remove the text, or set model.tokenizer to one whose template writes "
                f"it."
            )
        for field, value in turn.items():
            if field in ("role", "content", *METADATA) or WITHOUT_EFFECT.get(field) == value:
                continue
            others = [{name: other[name] for name in other if name != field} for other in messages]
            if not template.reads(field, tools) and template.write(others, tools) == text:
                raise UserError(
                    f"{where}, has the field {field!r} ({shorten(repr(value), 40)}), which neither the chat template "
                    f"nor the loss follows; remove it."
                )


def _check_trained(place: object, messages: list[Record], tools: list[Any] | None, template: ChatTemplate) -> None:
    """Raise UserError if the template marks no token of a conversation as one that the assistant says."""
    if not template.marks_the_assistant(tools):
        raise UserError(
            f"{place} has tools, and the chat template for tools does not mark what the assistant says, as the default "
            f"one does; put {{% generation %}} and {{% endgeneration %}} into both."
        )
    if not template.trains(messages, tools):
        raise UserError(
            f"{place} has no token of the assistant to train on, for the chat template writes its turns as empty; "
            f"remove it."
        )


def _message(place: str, turn: Any, typed: bool) -> Record:
    """Return a turn as role, content and what else it holds; raise UserError if it has no role or no content."""
    if not isinstance(turn, dict):
        raise UserError(f"{place}, is {named_kind(turn)}, not an object with role and content.")
    # columns of one type hold null for what a message lacks
    message = {name: value for name, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise UserError(f"{place}, is from {speaker!r}; the speakers are {', '.join(SHAREGPT_ROLES)}.")
        message = {"role": SHAREGPT_ROLES[speaker], "content": message.pop("value", None), **message}
    if not isinstance(message.get("role"), str):
        raise UserError(f"{place}, has no role; a message has role and content, or from and value.")
    _check_storable(f"{place},", message)
    content = message.get("content")
    if isinstance(content, list):  # a template of text alone would write it as Python does
        content = "".join(_text_of_part(place, part) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"{place}, holds {named_kind(content)} as its content, not text.")
    message["content"] = content
    for field, value in message.items():
        if typed and field != "content":
            _check_no_null(f"{place}, holds null in its field {field!r}", value)
    return message


def _text_of_part(place: str, part: Any) -> str:
    """Return the text of a part of a message's content; raise UserError if it is not text."""
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise UserError(f'{place}, has a part that is not text; a part is {{"type": "text", "text": ...}}.')
    return part["text"]


def _tools(place: object, value: Any, typed: bool) -> list[Any] | None:
    """Return the tools in a column, a list of objects or its JSON; None for none."""
    tools = value
    if isinstance(value, str) and value.strip():
        try:
            tools = json.loads(value)
        except ValueError as error:
            raise UserError(f"{place} holds text in its column {TOOLS!r} that is not JSON ({error}).") from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{place} holds {named_kind(tools)} in its column {TOOLS!r}, not a list of objects.")
    _check_storable(place, tools)
    if typed and tools is value:
        _check_no_null(f"{place} holds null in its column {TOOLS!r}", tools)
    return tools


def _check_no_null(beginning: str, value: Any) -> None:
    """Raise UserError with this beginning for null in a column of one type, which the template would write."""
    if _holds_null(value):
        raise UserError(
            f"{beginning}, as columns of one type do for what an object lacks; write the records to a .jsonl file, in "
            f"which every object has its own fields."
        )


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _check_storable(place: object, value: Any) -> None:
    """Raise UserError for a value that `datasets` would store as another: as null, as a number or as text."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_storable(place, item)
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{place} holds {named_kind(value)}; write it as text.")
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
        raise UserError(f"{place} holds a number that is not finite or has more than 64 bits.")
