import json

import pytest
import torch
from transformers import AutoTokenizer

from revformers.errors import UserError
from revformers.training.finetune_data import load_finetune_data, training_blocks
from revformers.training.finetune_recipe import FinetuneDataSection
from tests.training.tiny_finetune import COLUMNS, CONVERSATIONS, INSTRUCTIONS, TEMPLATE, write_model, write_records


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finetune-data")
    write_model(directory)
    return directory


@pytest.fixture
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "model")


def section(path, **options):
    return FinetuneDataSection(source=str(path), block_length=32, **options)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"prompt": "question", "completion": "output"}},
            "has no column 'question'; its columns are instruction, input",
        ),
        ({"columns": {"prompt": "{question}", "completion": "output"}}, "has no column 'question'"),
        ({"columns": {"prompt": "{instruction", "completion": "output"}}, "data.columns.prompt is not a template"),
        ({"columns": {"prompt": ["a"], "completion": "output"}}, "takes the name of a column or a template"),
        ({"columns": {"prompts": "instruction"}}, "data.columns takes prompt, completion and messages, not 'prompts'"),
        ({"columns": {"prompt": "instruction"}, "form": "text"}, "does not apply to text"),
        ({"form": "messages"}, "has no column 'messages'"),
        ({"form": "text"}, r"has no column 'text'; its columns are instruction, input, output. Set data.text_column"),
        ({}, "has no column 'text'"),
        ({"columns": {"prompt": "number", "completion": "output"}}, "must hold text or messages"),
    ],
)
def test_columns_that_are_not_there_are_named_in_one_sentence(tmp_path, tokenizer, options, message):
    records = [{**row, "number": 3} if "number" in str(options) else row for row in INSTRUCTIONS]
    path = write_records(tmp_path / "a.json", records)
    with pytest.raises(UserError) as caught:
        load_finetune_data(section(path, **options), tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(UserError, match=r"is too short for one block of 4096 tokens .* shorten data\.block_length"):
        training_blocks(data, tokenizer, 2, 4096)
