import datetime
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import chat_template_utils

from revformers.errors import UserError
from revformers.training.finetune_data import FinetuneData, dropped_records, load_finetune_data, training_blocks
from revformers.training.finetune_recipe import FinetuneDataSection
from tests.training.tiny_finetune import COLUMNS, CONVERSATIONS, INSTRUCTIONS, TEMPLATE, write_records


@pytest.fixture
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "model")


def section(path, **options):
    return FinetuneDataSection(**{"source": str(path), "block_length": 32} | options)


def test_text_is_packed_with_the_tokenizer_of_the_model(shared, tokenizer):
    data = load_finetune_data(section(shared / "text.txt", validation_blocks=3), tokenizer)
    assert data.form == "text"
    assert len(data.validation) == 3
    text = (shared / "text.txt").read_text()
    assert tokenizer.decode(torch.cat([block["input_ids"] for block in data.training])) in text
    blocks = training_blocks(data, tokenizer, 5, 32)
    assert torch.equal(blocks, torch.stack([data.training[row]["input_ids"] for row in range(5)]))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_prompts_and_completions_are_made_from_columns(tmp_path, tokenizer, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "json":
        write_records(path, INSTRUCTIONS)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in INSTRUCTIONS))
    data = load_finetune_data(section(path, columns=COLUMNS, validation_documents=2, validation_blocks=1), tokenizer)
    assert data.form == "prompt_completion"
    assert not data.assistant_only
    assert data.validation[:] == {"prompt": ["Repeat the number 0. \n"], "completion": ["0 0"]}
    assert data.training[1] == {"prompt": "Repeat the number 3. twice\n", "completion": "3 3"}
    assert len(data.training) == 38
    written = "Repeat the number 2. \n2 2<|endoftext|>Repeat the number 3. twice\n3 3<|endoftext|>"
    assert tokenizer.decode(training_blocks(data, tokenizer, 2, 16).flatten()).startswith(written[:40])


def test_columns_of_the_right_names_need_no_mapping(tmp_path, tokenizer):
    records = [{"prompt": row["instruction"], "completion": row["output"], "id": 1} for row in INSTRUCTIONS]
    data = load_finetune_data(section(write_records(tmp_path / "a.json", records)), tokenizer)
    assert data.form == "prompt_completion"
    assert data.training.column_names == ["prompt", "completion"]


def test_conversations_are_written_by_the_chat_template(tmp_path, tokenizer):
    renamed = [{"turns": row["messages"]} for row in CONVERSATIONS]
    path = write_records(tmp_path / "a.json", renamed)
    data = load_finetune_data(section(path, columns={"messages": "turns"}), tokenizer)
    assert data.form == "messages"
    assert data.assistant_only
    blocks = training_blocks(data, tokenizer, 2, 16)
    expected = tokenizer.apply_chat_template(data.training[0]["messages"], tokenize=False)
    assert tokenizer.decode(blocks.flatten()).startswith(expected[:30])


def test_a_template_that_does_not_mark_the_assistant_is_told_apart(tmp_path, tokenizer):
    path = write_records(tmp_path / "a.json", CONVERSATIONS)
    tokenizer.chat_template = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert not load_finetune_data(section(path), tokenizer).assistant_only


USER, ASSISTANT = CONVERSATIONS[0]["messages"]
UNMARKED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CONTENT_ALONE = TEMPLATE.replace("{{ eos_token }}", "")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE.replace("{% generation %}", "{%- generation -%}"), True),
        ("{# {% generation %}{% endgeneration %} #}" + UNMARKED, False),
        ("{{ '{% generation %}{% endgeneration %}' }}" + UNMARKED, False),
        ({"default": TEMPLATE, "tool_use": TEMPLATE}, True),
        ({"default": UNMARKED, "tool_use": TEMPLATE}, False),
        ({"default": TEMPLATE, "tool_use": UNMARKED}, True),
    ],
)
def test_the_template_that_writes_the_conversations_tells_whether_it_marks_the_assistant(
    tmp_path, tokenizer, template, expected
):
    """TRL accepts what is returned, and trains on what the assistant says or on all."""
    tokenizer.chat_template = template
    path = write_records(tmp_path / "a.json", CONVERSATIONS)
    data = load_finetune_data(section(path), tokenizer)
    assert data.assistant_only == expected
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tokenizer.name_or_path),
        trl.SFTConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False, assistant_only_loss=expected),
        train_dataset=data.training,
        processing_class=tokenizer,
    )
    row = trainer.train_dataset[0]
    labels = [number for number in row.get("labels", row["input_ids"]) if number != -100]
    said = data.training[0]["messages"][1]["content"] + "<|endoftext|>"
    assert tokenizer.decode(labels) == (said if expected else tokenizer.decode(row["input_ids"]))


def test_templates_that_trl_replaces_by_marked_ones_are_checked_and_trained_as_replaced(tmp_path, tokenizer):
    tokenizer.chat_template = chat_template_utils.qwen3_chat_template
    records = [{"messages": row["messages"] * 2} for row in CONVERSATIONS]
    data = load_finetune_data(section(write_records(tmp_path / "a.json", records)), tokenizer)
    assert data.assistant_only
    own, marked = (
        tokenizer.apply_chat_template(data.training[0]["messages"], chat_template=template, tokenize=False)
        for template in (None, chat_template_utils.qwen3_training_chat_template)
    )
    written = tokenizer.decode(training_blocks(data, tokenizer, 8, 16).flatten())
    assert marked.startswith(written[: len(marked)])
    assert not own.startswith(written[: len(own)])


@pytest.mark.parametrize(
    ("template", "content", "tools", "message"),
    [
        (CONTENT_ALONE, "", None, "has no token of the assistant to train on"),
        (CONTENT_ALONE.replace("['content'] }}{% end", "['content'] | trim }}{% end"), " \n", None, "has no token of"),
        (TEMPLATE, "", None, None),  # the token that ends the turn
        (CONTENT_ALONE, " ", None, None),
        (UNMARKED, "", None, None),
        ({"default": TEMPLATE, "tool_use": "{{ tools }}" + UNMARKED}, "a", [{"name": "f"}], "has tools, and the chat"),
        ({"default": TEMPLATE, "tool_use": "{{ tools }}" + TEMPLATE}, "a", [{"name": "f"}], None),
    ],
)
def test_a_conversation_without_a_token_of_the_assistant_is_named(
    tmp_path, tokenizer, template, content, tools, message
):
    tokenizer.chat_template = template
    record = {"messages": [USER, {**ASSISTANT, "content": content}], "tools": tools}
    path = write_records(tmp_path / "a.json", [*CONVERSATIONS[:3], record])
    if message is None:
        assert len(load_finetune_data(section(path, validation_documents=1), tokenizer).training) == 3
        return
    with pytest.raises(UserError, match=rf"^Record 4 of .*a\.json {message}") as caught:
        load_finetune_data(section(path), tokenizer)
    assert "\n" not in str(caught.value)


TURNS = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (TURNS, {"columns": COLUMNS}, "The records hold conversations; remove data.columns."),
        (CONVERSATIONS, {"columns": COLUMNS}, "The records hold conversations; remove data.columns."),
        (
            TURNS,
            {"columns": COLUMNS, "form": "prompt_completion"},
            "The records hold conversations; remove data.columns and set data.form to messages.",
        ),
        (TURNS, {"form": "text"}, "The records hold conversations; set data.form to messages."),
        (
            [{"prompt": "a", "completion": "b"}] * 3,
            {"columns": COLUMNS},
            "The records hold prompts with completions; remove data.columns.",
        ),
        (CONVERSATIONS, {"form": "prompt_completion"}, "set data.form to messages."),
        ([{"text": "b"}] * 3, {"columns": COLUMNS}, "The records hold text; remove data.columns."),
        ([{"turns": [USER]}] * 3, {"form": "messages"}, "Set data.columns.messages to the column that holds the messa"),
    ],
)
def test_records_in_a_known_form_need_no_other_columns(tmp_path, tokenizer, records, options, message):
    with pytest.raises(UserError) as caught:
        load_finetune_data(section(write_records(tmp_path / "a.json", records), **options), tokenizer)
    assert message in str(caught.value)
    assert "file of their own" not in str(caught.value)
    assert ("Set data." in str(caught.value)) == message.startswith("Set data.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"prompt": "question", "completion": "output"}},
            "has no column 'question'; its columns are instruction, input",
        ),
        ({"columns": {"prompt": "{question}", "completion": "output"}}, "has no column 'question'"),
        ({"columns": {"prompt": "{instruction", "completion": "output"}}, "data.columns.prompt is not a template"),
        *(
            ({"columns": {"prompt": template, "completion": "output"}}, "a column stands in it as {name} alone")
            for template in ("{input:>9}", "{input!r}", "{input.real}", "{input[0]}", "{}", "{0}", "{input:{output}}")
        ),
        ({"columns": {"prompt": ["a"], "completion": "output"}}, "takes the name of a column or a template"),
        ({"columns": {"prompts": "instruction"}}, "data.columns takes prompt, completion and messages, not 'prompts'"),
        ({"columns": {"prompt": "instruction"}, "form": "text"}, "does not apply to text"),
        ({"form": "messages"}, "has no column 'messages'"),
        ({"form": "messages", "source": "nested"}, "The records seem to lie in 'data': write them to a file of their"),
        ({"source": "nested"}, "The records seem to lie in 'data': write them to a file of their own."),
        ({"form": "text"}, r"has no column 'text'; its columns are instruction, input, output. Set data.text_column"),
        ({}, "or data.columns to those of prompts and completions, such as {prompt: "),
        ({"columns": COLUMNS, "add_bos_token": "never"}, "data.add_bos_token applies to text"),
        ({"columns": {"prompt": "number", "completion": "output"}}, "holds a number in its column 'number', not text"),
    ],
)
def test_columns_that_are_not_there_are_named_in_one_sentence(tmp_path, tokenizer, options, message):
    records = [{**row, "number": 3} if "number" in str(options) else row for row in INSTRUCTIONS]
    path = write_records(tmp_path / "a.json", [{"data": records}] if "nested" in str(options) else records)
    with pytest.raises(UserError) as caught:
        load_finetune_data(section(path, **{**options, "source": str(path)}), tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ROW = {"instruction": "a", "input": "b", "output": "c"}
WRONG = {
    "null in a template": ({**ROW, "input": None}, "holds null in its column 'input', not text"),
    "a missing field": ({"instruction": "a", "output": "c"}, "has no column 'input'"),
    "a list of two texts": ({**ROW, "output": ["a", "b"]}, "holds a list in its column 'output'"),
    "a number": ({**ROW, "output": 3}, "holds a number in its column 'output'"),
    "an object": ({**ROW, "instruction": {"a": 1}}, "holds an object in its column 'instruction'"),
    "no messages": ({"messages": None}, "holds null in its column 'messages', not a list of messages"),
    "a text": ({"messages": "count"}, "holds text in its column 'messages'"),
    "an empty list": ({"messages": []}, "holds an empty list in its column 'messages'"),
    "a list of texts": ({"messages": ["a", "b"]}, ", message 1, is text, not an object with role and content"),
    "no role": ({"messages": [USER, {"content": "a"}]}, ", message 2, has no role"),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, ", message 2, holds null as its content"),
    "a number as content": ({"messages": [{**USER, "content": 1}, ASSISTANT]}, ", message 1, holds a number as its"),
    "no assistant": ({"messages": [USER]}, "has no turn of the assistant to train on"),
    "a speaker": (
        {"messages": [{"from": "bing", "value": "a"}, ASSISTANT]},
        ", message 1, is from 'bing'; the speakers",
    ),
    "a list as a speaker": (
        {"messages": [{"from": ["human"], "value": "a"}, ASSISTANT]},
        ", message 1, is from ['human']",
    ),
    "parts that are not text": ({"messages": [{**USER, "content": [1, 2]}, ASSISTANT]}, "has a part that is not text"),
    "no number": ({"messages": [{**USER, "weight": float("nan")}, ASSISTANT]}, "message 1, holds a number that is not"),
    "a long number": ({"messages": [{**USER, "weight": 10**40}, ASSISTANT]}, "message 1, holds a number that is not"),
    "a template that refuses": (
        {"messages": [ASSISTANT, {"role": "raise", "content": "a"}]},
        "The chat template cannot",
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("wrong", WRONG)
def test_every_record_is_checked_and_named(tmp_path, tokenizer, wrong, suffix):
    record, message = WRONG[wrong]
    good, columns = (CONVERSATIONS[:3], {}) if "messages" in record else (INSTRUCTIONS[:3], COLUMNS)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'raise' %}{{ raise_exception('no such role') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in [*good, record]))
    else:
        try:
            pa.parquet.write_table(pa.Table.from_pylist([*good, record]), path)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pytest.skip("a column of one type cannot hold this")
        message = "null" if wrong in ("a missing field", "no role") else message
        message = "has no role" if wrong == "no role" else message
    with pytest.raises(UserError) as caught:
        load_finetune_data(section(path, columns=columns), tokenizer)
    assert message in str(caught.value)
    assert f"{'Line' if suffix == 'jsonl' else 'Record'} 4 of {path}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_conversations_of_sharegpt_are_read_as_messages(tmp_path, tokenizer, suffix):
    roles = {"user": "human", "assistant": "gpt"}
    records = [
        {
            "id": n,
            "conversations": [{"from": roles[turn["role"]], "value": turn["content"]} for turn in row["messages"]],
        }
        for n, row in enumerate(CONVERSATIONS)
    ]
    write_records(tmp_path / "a.json", CONVERSATIONS)
    expected = load_finetune_data(section(tmp_path / "a.json"), tokenizer)
    path = tmp_path / f"b.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(records), path)
    found = load_finetune_data(section(path), tokenizer)
    assert found.form == "messages"
    assert found.training[:] == expected.training[:]
    assert found.validation[:] == expected.validation[:]


def test_fields_that_only_some_messages_have_are_kept(tmp_path, tokenizer):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    records = [*CONVERSATIONS[:3], {"messages": [USER, call, {"role": "tool", "content": "3", "name": "f"}]}]
    tokenizer.chat_template = TEMPLATE.replace("{% generation %}", "{% generation %}{{ message['tool_calls'] }}")
    data = load_finetune_data(section(write_records(tmp_path / "a.json", records)), tokenizer)
    assert data.training[0]["messages"] == CONVERSATIONS[1]["messages"]
    assert data.training[2]["messages"] == records[3]["messages"]


def test_whole_numbers_in_a_template_are_written_as_digits(tmp_path, tokenizer):
    records = [{"question": f"{n} + 1", "answer": n + 1} for n in range(4)]
    columns = {"prompt": "question", "completion": "= {answer}"}
    data = load_finetune_data(section(write_records(tmp_path / "a.json", records), columns=columns), tokenizer)
    assert data.training["completion"][:] == ["= 2", "= 3", "= 4"]


def test_a_changed_chat_template_writes_the_records_again(tmp_path, tokenizer):
    path = write_records(tmp_path / "a.json", CONVERSATIONS)
    load_finetune_data(section(path), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"The chat template cannot write Record 1 of .*a\.json: never"):
        load_finetune_data(section(path), tokenizer)


@pytest.mark.parametrize(
    "template", ["{% for", "{% for m in messages %}{{ m.content }}", "{% generation %}", "{{ 'a }}"]
)
@pytest.mark.parametrize("several", [False, True])
def test_a_template_with_a_fault_is_one_sentence(tmp_path, tokenizer, template, several):
    tokenizer.chat_template = {"default": template, "tool_use": TEMPLATE} if several else template
    with pytest.raises(UserError, match=r"^The chat template cannot (be read|write Record 1 of .*a\.json): ") as caught:
        load_finetune_data(section(write_records(tmp_path / "a.json", CONVERSATIONS)), tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", [None, [{"name": "f"}]])
def test_a_tokenizer_without_a_default_template_writes_what_it_has_one_for(tmp_path, tokenizer, tools):
    tokenizer.chat_template = {"tool_use": "{{ tools }}" + TEMPLATE}
    path = write_records(tmp_path / "a.json", [{**row, "tools": tools} for row in CONVERSATIONS])
    if tools:
        assert not load_finetune_data(section(path), tokenizer).assistant_only
        return
    with pytest.raises(UserError, match=r"^The chat template cannot write Record 1 of .*a\.json: "):
        load_finetune_data(section(path), tokenizer)


def test_records_that_truncation_empties_are_counted_and_named():
    data = FinetuneData("prompt_completion", [0] * 5, [0] * 2)
    assert dropped_records(data, [0] * 5, [0] * 2, 32) == []
    (sentence,) = dropped_records(data, [0] * 3, [0] * 2, 32)
    assert sentence.startswith(
        "2 of 5 training records have no trained token in their first 32 tokens, and are left out"
    )
    (one,) = dropped_records(data, [0] * 4, [0] * 2, 32)
    assert one == (
        "1 of 5 training records has no trained token in its first 32 tokens, and is left out; a larger "
        "data.block_length keeps it."
    )
    for part, left in (("5 training", ([], [0] * 2)), ("2 validation", ([0] * 5, []))):
        with pytest.raises(
            UserError, match=rf"None of the {part} records has a trained token .* raise data\.block_length"
        ):
            dropped_records(data, *left, 32)
    with pytest.raises(
        UserError, match=r"^The only validation record has no trained token in its first 32 tokens; raise"
    ):
        dropped_records(FinetuneData("prompt_completion", [0] * 5, [0]), [0] * 5, [], 32)


def test_conversations_without_a_chat_template_are_refused(tmp_path, tokenizer):
    tokenizer.chat_template = None
    conversational = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in CONVERSATIONS]
    for records in (CONVERSATIONS, conversational):
        with pytest.raises(UserError, match=r"the tokenizer has no chat template to render them"):
            load_finetune_data(section(write_records(tmp_path / "a.json", records)), tokenizer)


def test_completions_need_a_token_that_ends_them(tmp_path, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        load_finetune_data(section(write_records(tmp_path / "a.json", INSTRUCTIONS), columns=COLUMNS), tokenizer)


def test_too_little_data_for_the_conversion_is_named(tmp_path, tokenizer):
    path = write_records(tmp_path / "a.json", INSTRUCTIONS[:3])
    data = load_finetune_data(section(path, columns=COLUMNS), tokenizer)
    with pytest.raises(UserError, match=r"to fit the conversion to does not fill one block of 4096 tokens; .* shorten"):
        training_blocks(data, tokenizer, 2, 4096)


def test_parts_of_text_are_one_text(tmp_path, tokenizer):
    """A template that knows no parts would write them as Python does."""
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    records = [{"messages": [USER, {"role": "assistant", "content": parts}]} for _ in range(4)]
    data = load_finetune_data(section(write_records(tmp_path / "a.json", records)), tokenizer)
    assert data.training[0]["messages"][1] == {"role": "assistant", "content": "one, two"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tools_are_written_into_training_and_calibration_text(tmp_path, tokenizer, suffix):
    tokenizer.chat_template = "{% for tool in tools or [] %}<{{ tool['name'] }}>{% endfor %}" + TEMPLATE
    tools = [{"name": "add"}, {"name": "mul"}]
    records = [{**row, "id": n, "tools": tools if n % 2 else None} for n, row in enumerate(CONVERSATIONS)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in records))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(records), path)
    data = load_finetune_data(section(path, validation_documents=1), tokenizer)
    assert [json.loads(row["tools"]) for row in data.training][:2] == [tools, None]
    assert "<add><mul>user: count to 1" in tokenizer.decode(training_blocks(data, tokenizer, 2, 32).flatten())


def test_times_in_messages_are_refused(tmp_path, tokenizer):
    record = {"messages": [{**USER, "at": datetime.datetime(2020, 1, 1)}, ASSISTANT]}
    pa.parquet.write_table(pa.Table.from_pylist([record] * 3), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"Record 1 of .*, message 1, holds a time; write it as text\."):
        load_finetune_data(section(tmp_path / "a.parquet"), tokenizer)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nulls_of_columns_of_one_type_are_not_trained_on(tmp_path, tokenizer, suffix):
    """A column of tool calls has the arguments of all of them; what the author of a line of JSON wrote is kept."""
    tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    arguments = [{"city": "Paris", "unit": None if suffix == "jsonl" else "K"}, {"city": "Rome"}]
    calls = [{**ASSISTANT, "tool_calls": [{"function": {"arguments": one}}]} for one in arguments]
    records = [{"messages": [USER, calls[n]]} for n in (0, 0, 1)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        data = load_finetune_data(section(path, validation_documents=1), tokenizer)
        assert [row["messages"][1] for row in data.training] == calls
        return
    pa.parquet.write_table(pa.Table.from_pylist(records), path)
    with pytest.raises(UserError, match=r"Record 3 of .*, message 2, holds null in its field 'tool_calls', as columns"):
        load_finetune_data(section(path), tokenizer)
