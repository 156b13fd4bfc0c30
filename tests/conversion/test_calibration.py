"""Whatever a user has as text reads as the tokens that a plain loop over the tokenizer gives."""

import copy

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

import revformers as rf
from lab.text import WORDS
from revformers.conversion.calibration import read_text
from tests.test_reversible import llama

DOCUMENTS = [" ".join(WORDS[(3 * start + k * k) % len(WORDS)] for k in range(11)) for start in range(30)]
LENGTH = 9


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")


def expected(documents=DOCUMENTS, end=(0,), length=LENGTH):
    """The blocks of the documents, made by hand from the vocabulary: 2 is "the"."""
    tokens = [token for text in documents for token in [*(WORDS.index(word) + 2 for word in text.split()), *end]]
    return torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)


def converted(text, tokenizer=None, **options):
    model = llama(layers=3)
    conversion = rf.convert(model, 1, text, tokenizer=tokenizer, length=LENGTH, **options)
    return conversion, model


def same(left, right):
    ids = expected()[:2]
    return left[0] == right[0] and torch.equal(left[1](ids).logits, right[1](ids).logits)


@pytest.mark.thorough
def test_strings_and_columns_of_text_are_documents_packed_into_blocks(tokenizer):
    reference = converted(expected())
    assert same(reference, converted(DOCUMENTS, tokenizer))
    assert same(reference, converted(datasets.Dataset.from_dict({"text": DOCUMENTS}), tokenizer))
    other = datasets.Dataset.from_dict({"n": range(30), "story": DOCUMENTS})
    assert same(reference, converted(other, tokenizer, text_column="story"))
    assert same(reference, converted(other.to_iterable_dataset(), tokenizer, text_column="story"))
    assert not same(reference, converted(DOCUMENTS[1:], tokenizer))


@pytest.mark.thorough
def test_files_are_read_as_the_recipes_read_them_with_nothing_held_out(tokenizer, tmp_path):
    running = tmp_path / "text.txt"
    running.write_text("\n".join(DOCUMENTS))
    assert same(converted(expected(end=())), converted(running, tokenizer))
    records = tmp_path / "text.jsonl"
    datasets.Dataset.from_dict({"text": DOCUMENTS}).to_json(records)
    assert same(converted(expected()), converted(str(records), tokenizer))


def test_text_begins_as_the_tokenizer_begins_it(tokenizer, tmp_path):
    starting = copy.deepcopy(tokenizer)
    starting.bos_token = "the"  # 2
    (tmp_path / "text.txt").write_text("\n".join(DOCUMENTS))

    def read(text, choice="auto"):
        return read_text(text, starting, "text", 1000, LENGTH, choice)

    documents = expected([f"the {text}" for text in DOCUMENTS])
    assert torch.equal(read(DOCUMENTS, "always"), documents)
    assert torch.equal(read(DOCUMENTS), expected())
    starting.backend_tokenizer.post_processor = processors.TemplateProcessing("the $A", special_tokens=[("the", 2)])
    assert torch.equal(read(DOCUMENTS), documents)
    assert torch.equal(read(datasets.Dataset.from_dict({"text": DOCUMENTS})), documents)
    assert torch.equal(read(DOCUMENTS, "never"), expected())
    assert torch.equal(read(tmp_path / "text.txt"), expected(["the", *DOCUMENTS], end=()))
    conversion = rf.convert(llama(layers=3), 1, DOCUMENTS, tokenizer=starting, length=LENGTH, add_bos_token="never")
    assert conversion.calibration_tokens == expected().numel() < documents.numel()


@pytest.mark.thorough
def test_the_number_of_sequences_is_limited(tokenizer):
    conversion, _ = converted(DOCUMENTS, tokenizer, held_out=DOCUMENTS[5:], sequences=7)
    assert (conversion.calibration_tokens, conversion.held_out_tokens) == (7 * LENGTH, 7 * LENGTH)
    assert converted(expected(), sequences=1)[0].calibration_tokens == expected().numel()  # tokens are taken whole


@pytest.mark.thorough
def test_a_tokenised_data_set_is_read_row_by_row():
    rows = expected()
    dataset = datasets.Dataset.from_dict({"text": ["x"] * len(rows), "input_ids": rows.tolist()})
    reference = converted(rows)
    assert same(reference, converted(dataset))
    assert same(reference, converted(dataset.with_format("torch")))
    lengths = [rows[0].tolist(), rows[1].tolist(), rows[2, :4].tolist()]
    uneven = datasets.Dataset.from_dict({"input_ids": lengths, "attention_mask": [[1] * len(row) for row in lengths]})
    by_hand = [{"input_ids": rows[:2]}, {"input_ids": rows[2:3, :4]}]
    assert same(converted(by_hand), converted(uneven))


@pytest.mark.thorough
def test_batches_from_a_loader_and_one_batch_alone_are_read(tokenizer):
    reference = converted(expected())
    assert same(reference, converted(DataLoader([{"input_ids": row} for row in expected()], batch_size=8)))
    encoded = tokenizer(DOCUMENTS, return_tensors="pt", return_token_type_ids=False)
    assert same(converted([{"input_ids": encoded["input_ids"]}]), converted(encoded))


@pytest.mark.thorough
def test_held_out_text_takes_the_same_forms(tokenizer):
    tokens = converted(expected(), held_out=expected(DOCUMENTS[5:]))
    assert same(tokens, converted(expected(), tokenizer, held_out=DOCUMENTS[5:]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DOCUMENTS, "list of strings holds text.*pass the model's own as tokenizer="),
        (datasets.Dataset.from_dict({"text": DOCUMENTS}), "data set holds text.*tokenizer="),
        (datasets.Dataset.from_dict({"story": DOCUMENTS}), "no column 'text'; its columns are story.* Set text_column"),
        (
            datasets.Dataset.from_dict({"text": [1, 2]}),
            "Record 1 of the data set holds a number in its column 'text', not text",
        ),
        (datasets.Dataset.from_dict({"text": []}), "data set is empty"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": DOCUMENTS})), r"choose one.*\['train'\]"),
        (datasets.Dataset.from_dict({"input_ids": [[1, 2]], "attention_mask": [[1, 0]]}), "must not be padded"),
        ([{"text": "the model"}], "not a mapping of text; give text itself"),
        ([["the"], ["model"]], "not list; give text itself"),
        ({"text": DOCUMENTS}, "mapping of text"),
        ([{"input_ids": torch.ones(2, 5)}], r"not float32\[2, 5\]"),
        (torch.full((2, 5), 61), "tokens from 61 to 61, and the model has 61"),
        ([], "no calibration text"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_a_sentence(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        converted(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([*DOCUMENTS, None], "Item 31 of the list of strings is null, not text"),
        (datasets.Dataset.from_dict({"text": [*DOCUMENTS, None]}), "Record 31 of the data set holds null"),
        ('{"text": "the model"}\n{"text": null}\n', r"Line 2 of .*a\.jsonl holds null in its column 'text'"),
    ],
)
def test_every_text_is_checked(tokenizer, tmp_path, text, message):
    if isinstance(text, str):
        (tmp_path / "a.jsonl").write_text(text)
        text = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=message):
        converted(text, tokenizer)


def test_a_string_is_a_path_and_never_text(tokenizer):
    for text in ("the model reads the state", "missing.txt", "the model reads " * 1000):
        with pytest.raises(FileNotFoundError, match=r"no file or directory .* as a list of strings"):
            converted(text, tokenizer)


def test_text_of_less_than_a_block_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="list of strings does not fill one block of 9 tokens"):
        converted(["the model"], tokenizer)
    (tmp_path / "notes.md").write_text("the model")
    with pytest.raises(ValueError, match="not a supported kind of text file"):
        converted(tmp_path / "notes.md", tokenizer)


def test_bad_sizes_are_refused(tokenizer):
    with pytest.raises(ValueError, match="sequences of at least 1"):
        converted(DOCUMENTS, tokenizer, sequences=0)
    with pytest.raises(ValueError, match="length of at least 2"):
        rf.convert(llama(), 1, DOCUMENTS, tokenizer=tokenizer, length=1)
