"""A conversation is written whole, or one sentence says what the chat template would leave out."""

import datetime
import decimal
import json

import pytest

from revformers.data.tokenizer import train_tokenizer
from revformers.errors import UserError
from revformers.training.conversations import ChatTemplate, conversation_row
from tests.training.tiny_finetune import TEMPLATE

USER, ASSISTANT = {"role": "user", "content": "count"}, {"role": "assistant", "content": "one"}
TWO_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif m.role == 'assistant' %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)
STRICT = "{% for m in messages if m.role == 'usr' %}{{ raise_exception('no usr') }}{% endfor %}" + TEMPLATE
WHOLE = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
WITH_TOOLS = "{{ tools | tojson if tools else '' }}" + TEMPLATE
WITH_WEIGHTS = TEMPLATE + "{{ messages[0].weight }}"
TOOL = {"name": "add", "parameters": {"x": "number"}}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text"], 257)


def row(tokenizer, template, record):
    tokenizer.chat_template = template
    return conversation_row("Line 3 of a.jsonl", record, {"messages": "messages"}, ChatTemplate(tokenizer))


@pytest.mark.parametrize(
    ("template", "first", "rest"),
    [
        (TEMPLATE, {**USER, "id": 3, "name": "Ada", "weight": 1, "train": True}, {}),
        (TEMPLATE, {"from": "human", "value": "count", "id": 3}, {}),
        (TEMPLATE, {"role": "usr", "content": "count"}, {}),  # the template writes any role
        (
            TEMPLATE.replace(
                "{{ message['content'] }}{% endif %}", "{{ message.content }}{{ message.weight }}{% endif %}"
            ),
            {**USER, "weight": 0},
            {},
        ),
        (WHOLE, {**USER, "thought": "hm"}, {}),
        (TEMPLATE, USER, {"id": 3, "source": "web", "system": "", "tools": None}),
        (TEMPLATE, USER, {"tools": []}),
        (WITH_TOOLS, USER, {"tools": [TOOL]}),
        (WITH_TOOLS, USER, {"tools": json.dumps([{**TOOL, "default": None}])}),
    ],
)
def test_what_is_written_or_is_no_part_of_the_text_is_kept(tokenizer, template, first, rest):
    made = row(tokenizer, template, {"messages": [first, ASSISTANT], **rest})
    expected = {"human": "user"}.get(first.get("from"), first.get("role"))
    assert made["messages"][0].items() >= {"role": expected, "content": "count"}.items()
    assert {*made["messages"][0]} == {"role", "content", *first} - {"from", "value"}
    tools = rest.get("tools") or None
    assert json.loads(made["tools"]) == (json.loads(tools) if isinstance(tools, str) else tools)


@pytest.mark.parametrize(
    ("template", "first", "rest", "message"),
    [
        (
            TEMPLATE,
            {**USER, "weight": 0},
            {},
            ", message 1, has the field 'weight' (0), which neither the chat template",
        ),
        (TEMPLATE, {"from": "human", "value": "count", "weight": 0}, {}, ", message 1, has the field 'weight' (0)"),
        (TEMPLATE, {**USER, "train": False}, {}, "has the field 'train' (False)"),
        (TEMPLATE, {**ASSISTANT, "tool_calls": [TOOL]}, {}, "has the field 'tool_calls' ([{'name': 'add',"),
        (TWO_ROLES, {**USER, "role": "usr"}, {}, ", message 1, has the role 'usr', which the chat template does not"),
        (TWO_ROLES, {**USER, "role": "system"}, {}, ", message 1, has the role 'system', which the chat template does"),
        (STRICT, {**USER, "role": "usr"}, {}, "The chat template cannot write Line 3 of a.jsonl: no usr."),
        (TEMPLATE, USER, {"tools": [TOOL]}, " has tools, which the chat template does not write; remove the column"),
        (WITH_TOOLS, USER, {"tools": "add"}, " holds text in its column 'tools' that is not JSON ("),
        (WITH_TOOLS, USER, {"tools": ["add"]}, " holds a list in its column 'tools', not a list of objects"),
        (WITH_TOOLS, USER, {"tools": [{**TOOL, "x": None}]}, " holds null in its column 'tools', as columns of one"),
        (TEMPLATE, USER, {"system": "Be kind."}, " has a column 'system', which is not written into conversations; "),
        (TEMPLATE, USER, {"chat_template_kwargs": {"x": 1}}, " has a column 'chat_template_kwargs', which is not"),
        (TEMPLATE, {**USER, "at": datetime.datetime(2020, 1, 1)}, {}, ", message 1, holds a time; write it as text."),
        (TEMPLATE, {**USER, "at": [decimal.Decimal(1)]}, {}, ", message 1, holds a decimal number; write it as text."),
        (TEMPLATE, {**USER, "at": {"x": b"a"}}, {}, ", message 1, holds binary data; write it as text."),
    ],
)
def test_what_would_be_left_out_is_named(tokenizer, template, first, rest, message):
    with pytest.raises(UserError) as caught:
        row(tokenizer, template, {"messages": [first, USER, ASSISTANT], **rest})
    expected = (
        message if message.startswith("The chat") else f"Line 3 of a.jsonl{message}" if message[0] in ", " else message
    )
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
