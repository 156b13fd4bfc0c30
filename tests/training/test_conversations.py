"""A conversation is written whole, or one sentence says what the chat template would leave out."""

import datetime
import decimal
import json

import pytest

from revformers.data.tokenizer import train_tokenizer
from revformers.errors import UserError
from revformers.training.chat_template import ChatTemplate
from revformers.training.conversations import conversation_row
from tests.training.tiny_finetune import TEMPLATE

USER, ASSISTANT = {"role": "user", "content": "count"}, {"role": "assistant", "content": "one"}
TWO_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif m.role == 'assistant' %}"
    "{{ m.content }}{% endif %}{% endfor %}"
)
STRICT = "{% for m in messages if m.role == 'usr' %}{{ raise_exception('no usr') }}{% endfor %}" + TEMPLATE
MENTIONING = (
    "{# the title, tools #}{% if messages[0].role == 'user' and messages[0].content.strip() %}{% endif %}" + TEMPLATE
)
WHOLE = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
WITH_TOOLS = "{{ tools | tojson if tools else '' }}" + TEMPLATE
WITH_WEIGHTS = TEMPLATE + "{{ messages[0].weight }}"
TOOL = {"name": "add", "parameters": {"x": "number"}}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text"], 257)


def row(tokenizer, template, record, typed=False):
    tokenizer.chat_template = template
    return conversation_row("Line 3 of a.jsonl", record, {"messages": "messages"}, ChatTemplate(tokenizer), typed)


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
        (WITH_TOOLS, USER, {"tools": [{**TOOL, "default": None}]}),
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
        (
            TWO_ROLES,
            {**USER, "role": "usr"},
            {},
            ", message 1, has text in the role 'usr' that the chat template leave",
        ),
        (
            TWO_ROLES,
            {**USER, "role": "system"},
            {},
            ", message 1, has text in the role 'system' that the chat template",
        ),
        (MENTIONING, {**USER, "title": "T"}, {}, ", message 1, has the field 'title' ('T'), which neither the chat"),
        (MENTIONING, {**USER, "in": "T"}, {}, ", message 1, has the field 'in' ('T'), which neither the chat template"),
        (MENTIONING, {**USER, "user": "T"}, {}, ", message 1, has the field 'user' ('T'), which neither the chat"),
        (MENTIONING, {**USER, "strip": "T"}, {}, ", message 1, has the field 'strip' ('T'), which neither the chat"),
        (MENTIONING, USER, {"tools": [TOOL]}, " has tools, which the chat template does not write; remove the column"),
        (STRICT, {**USER, "role": "usr"}, {}, "The chat template cannot write Line 3 of a.jsonl: no usr."),
        (TEMPLATE, USER, {"tools": [TOOL]}, " has tools, which the chat template does not write; remove the column"),
        (WITH_TOOLS, USER, {"tools": "add"}, " holds text in its column 'tools' that is not JSON ("),
        (WITH_TOOLS, USER, {"tools": ["add"]}, " holds a list in its column 'tools', not a list of objects"),
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


SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] or m.role == 'system' and loop.first %}"
    "{{ m.content | trim }}{% endif %}{% endfor %}"
)
NOT_FIRST = (
    "{% for m in messages %}{% if not (m.role == 'tool' and loop.first) %}{{ m.content }}{% endif %}{% endfor %}"
)
CALLS = "{% for m in messages %}{{ m.tool_calls[0].name if m.tool_calls else m.content }}{% endfor %}"
# as Qwen3's template, which writes the reasoning of the last turn alone
REASONING = (
    "{% for m in messages %}{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip() }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": " count "}
THOUGHT = {"role": "assistant", "content": "<think>hm</think>\n\none"}


@pytest.mark.parametrize(
    ("template", "messages", "left_out"),
    [
        (SYSTEM_FIRST, [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], None),
        (SYSTEM_FIRST, [USER, ASSISTANT, SYSTEM, USER, ASSISTANT], 3),
        (NOT_FIRST, [USER, {**USER, "role": "tool"}, ASSISTANT], None),
        (NOT_FIRST, [{**USER, "role": "tool"}, USER, ASSISTANT], 1),
        (CALLS, [USER, {**ASSISTANT, "content": "", "tool_calls": [TOOL]}, ASSISTANT], None),
        (CALLS, [USER, {**ASSISTANT, "tool_calls": [TOOL]}, ASSISTANT], 2),
        ("{% for m in messages %}{{ m.content[:4] }}{% endfor %}", [{**USER, "content": "coun"}, ASSISTANT], 1),
        (REASONING, [USER, THOUGHT, USER, THOUGHT], None),
        (REASONING, [USER, {**ASSISTANT, "reasoning_content": "hm"}, USER, ASSISTANT], None),
        (TEMPLATE, [USER, ASSISTANT] * 12, None),
    ],
)
def test_a_text_is_written_where_it_stands_in_the_record(tokenizer, template, messages, left_out):
    """A role that is written at one place may be left out at another."""
    if left_out is None:
        assert row(tokenizer, template, {"messages": messages})["messages"] == messages
        return
    role = messages[left_out - 1]["role"]
    with pytest.raises(UserError, match=f", message {left_out}, has text in the role '{role}' that the chat template"):
        row(tokenizer, template, {"messages": messages})


@pytest.mark.parametrize(
    "reading",
    [
        "message.mood",
        "message['mood']",
        "'mood' in message",
        "message.get('mood')",
        "[message] | selectattr('mood')",
        "x and message.mood.colour",
    ],
)
def test_a_field_that_a_template_reads_in_some_messages_is_kept(tokenizer, reading):
    read = f"{{% if x is defined %}}{{% for message in messages %}}{{{{ {reading} }}}}{{% endfor %}}{{% endif %}}"
    record = {"messages": [{**USER, "mood": "glad"}, ASSISTANT]}
    assert row(tokenizer, read + TEMPLATE, record)["messages"] == record["messages"]


def test_a_message_of_a_prompt_is_named_with_its_column(tokenizer):
    tokenizer.chat_template = TWO_ROLES
    columns = {"prompt": "prompt", "completion": "completion"}
    for wrong, fault in (
        ({**ASSISTANT, "role": "usr"}, "has text in the role 'usr'"),
        ({"role": "assistant"}, "holds null as its content"),
    ):
        record = {"prompt": [USER], "completion": [ASSISTANT, wrong]}
        with pytest.raises(UserError, match=f"^Line 3, completion, message 2, {fault}"):
            conversation_row("Line 3", record, columns, ChatTemplate(tokenizer), typed=False)


def test_a_tokenizer_with_several_templates_uses_the_one_for_tools(tokenizer):
    tools = "{{ tools | tojson }}{% if x is defined %}{{ messages[0].mood }}{% endif %}" + TEMPLATE
    templates = {"default": TEMPLATE, "tool_use": tools}
    record = {"messages": [{**USER, "mood": "glad"}, ASSISTANT]}
    assert json.loads(row(tokenizer, templates, {**record, "tools": [TOOL]})["tools"]) == [TOOL]
    with pytest.raises(UserError, match="has the field 'mood'"):
        row(tokenizer, templates, record)


CALL = {**ASSISTANT, "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1, "y": None}}}]}


@pytest.mark.parametrize(
    ("messages", "tools", "found"),
    [
        ([USER, CALL], None, ", message 2, holds null in its field 'tool_calls', as columns of one type do"),
        ([USER, ASSISTANT], [{**TOOL, "default": None}], " holds null in its column 'tools', as columns of one type"),
        ([USER, {**ASSISTANT, "tool_calls": None}], json.dumps([{**TOOL, "default": None}]), None),
    ],
)
def test_a_null_is_refused_where_a_column_has_one_type(tokenizer, messages, tools, found):
    """There it stands for what an object lacks; in lines of JSON the author wrote it."""
    record = {"messages": messages, "tools": tools}
    template = "{{ tools | tojson }}" + WHOLE
    made = row(tokenizer, template, record)
    assert made["messages"][0] == messages[0]
    assert made["messages"][1].get("tool_calls") == messages[1].get("tool_calls")
    if found is None:
        assert row(tokenizer, template, record, typed=True) == made
    else:
        with pytest.raises(UserError) as caught:
            row(tokenizer, template, record, typed=True)
        assert str(caught.value).startswith(f"Line 3 of a.jsonl{found}")
