import pytest

from lab.evaluation.documents import arc_challenge, arc_easy, gsm8k, openbookqa, piqa, split_pages, wikitext, winogrande
from revformers.errors import UserError
from tests.lab.evaluation.tiny import SHARED_DATA, needs_shared_data, write_data, write_rows


def test_running_text_is_split_at_level_one_headings_only():
    pages = [
        " = First page = \n \n Some = words . \n = = Section = = \n more \n = = = Deep = = = \n \n",
        " = 9 = \n x = y \n =\n = = \n",
        " = Last = \n",
    ]
    assert list(split_pages(" \n".join(["", *pages]).splitlines(keepends=True))) == [
        " = First page = \n \n Some = words . \n = = Section = = \n more \n = = = Deep = = = \n \n \n",
        " = 9 = \n x = y \n =\n = = \n \n",
        " = Last = \n",
    ]
    assert list(split_pages(["\n", " \n"])) == []


def test_documents_are_read_with_their_labels(tmp_path):
    data = str(write_data(tmp_path / "data", questions=5))
    questions = piqa(data)["validation"]
    labels = (tmp_path / "data/piqa/valid-labels.lst").read_text().split()
    assert [str(row["label"]) for row in questions] == labels
    assert set(questions.column_names) == {"goal", "sol1", "sol2", "label"}
    assert gsm8k(data)["test"][3] == {"question": "How many inches are there?", "answer": "3 and 3.\n#### 3"}
    assert len(wikitext(data)["test"]) == 6


def test_questions_with_choices_get_the_columns_that_the_harness_reads(tmp_path):
    data = write_data(tmp_path / "data")
    question = {"question": "Why?", "choices": ["so", "thus", "hence"], "answer": 2}
    choices = {"text": ["so", "thus", "hence"], "label": ["A", "B", "C"]}
    for file in ("arc/arc_easy.jsonl", "arc/arc_challenge.jsonl", "openbookqa/test.jsonl"):
        write_rows(data / file, [question])
    for read in (arc_easy, arc_challenge):
        assert list(read(str(data))["test"]) == [{"question": "Why?", "choices": choices, "answerKey": "C"}]
    (document,) = openbookqa(str(data))["test"]
    assert document == {"question_stem": "Why?", "choices": choices, "answerKey": "C"}
    row = {"sentence": "It fits _ well.", "option1": "the box", "option2": "the lid", "answer": "2"}
    write_rows(data / "winogrande/validation.jsonl", [row])
    assert list(winogrande(str(data))["validation"]) == [row]


@needs_shared_data
@pytest.mark.parametrize(
    ("read", "split", "documents"),
    [
        (arc_easy, "test", 2376),
        (arc_challenge, "test", 1172),
        (openbookqa, "test", 500),
        (winogrande, "validation", 1267),
    ],
)
def test_the_published_questions_are_read_whole(read, split, documents):
    assert len(read(str(SHARED_DATA))[split]) == documents


WITHOUT_A_RIGHT_CHOICE = '{"question": "?", "choices": ["a", "b"], "answer": 2}\n'
NUMBER_AS_QUESTION = '{"question": 5, "choices": ["a", "b"], "answer": 1}'
TRUE_AS_ANSWER = '{"question": "?", "choices": ["a", "b"], "answer": true}'
EMPTY_CHOICE = '{"question": "?", "choices": ["a", ""], "answer": 0}'
WITHOUT_A_BLANK = '{"sentence": "It fits.", "option1": "a", "option2": "b", "answer": "1"}\n'
OTHER_ANSWER = WITHOUT_A_BLANK.replace("fits", "fits _").replace('"1"', '"3"')


@pytest.mark.parametrize(
    ("file", "text", "read", "error", "message"),
    [
        ("piqa/valid.jsonl", None, piqa, FileNotFoundError, "holds no file piqa/valid.jsonl"),
        ("piqa/valid-labels.lst", "0\n1\n", piqa, UserError, "has 2 labels for the 12 questions"),
        ("piqa/valid-labels.lst", "2\n" * 12, piqa, UserError, "a 0 or a 1 in every line"),
        ("gsm8k/test.jsonl", '{"question": "?"}\n', gsm8k, UserError, "Line 1 of .* question, answer"),
        ("gsm8k/test.jsonl", "\n[1]\n", gsm8k, UserError, "Line 2 of"),
        ("gsm8k/test.jsonl", "\n", gsm8k, UserError, "is empty"),
        ("arc/arc_easy.jsonl", None, arc_easy, FileNotFoundError, "holds no file arc/arc_easy.jsonl"),
        ("arc/arc_easy.jsonl", WITHOUT_A_RIGHT_CHOICE, arc_easy, UserError, "Question 1 of .* right one, from 0"),
        (
            "arc/arc_challenge.jsonl",
            '{"question": "?", "choices": "ab", "answer": 0}',
            arc_challenge,
            UserError,
            "text",
        ),
        (
            "arc/arc_challenge.jsonl",
            '{"question": "?", "choices": ["a", 1], "answer": 0}',
            arc_challenge,
            UserError,
            "text",
        ),
        (
            "openbookqa/test.jsonl",
            '{"question": "?"}',
            openbookqa,
            UserError,
            "Line 1 of .* question, choices, answer",
        ),
        ("winogrande/validation.jsonl", WITHOUT_A_BLANK, winogrande, UserError, "Question 1 of .* blank"),
        ("winogrande/validation.jsonl", OTHER_ANSWER, winogrande, UserError, 'answer "1" or "2"'),
        ("wikitext-2/test.txt", " \n", wikitext, UserError, "is empty"),
        ("wikitext-2/test.txt", b"caf\xe9", wikitext, UserError, r"Line 1 of .*test.txt is not text in UTF-8 .*; save"),
        ("piqa/valid.jsonl", b"{\xff", piqa, UserError, "valid.jsonl is not text in UTF-8"),
        ("piqa/valid-labels.lst", b"\xff", piqa, UserError, "valid-labels.lst is not text in UTF-8"),
        (
            "piqa/valid.jsonl",
            '{"goal": null, "sol1": "a", "sol2": "b"}',
            piqa,
            UserError,
            "no text as goal, but None",
        ),
        ("piqa/valid.jsonl", '{"goal": "g", "sol1": "a", "sol2": 2}', piqa, UserError, "no text as sol2, but 2"),
        ("arc/arc_easy.jsonl", NUMBER_AS_QUESTION, arc_easy, UserError, "Line 1 of .* no text as question, but 5"),
        ("arc/arc_easy.jsonl", TRUE_AS_ANSWER, arc_easy, UserError, "Question 1 of .* right one, from 0"),
        ("arc/arc_easy.jsonl", EMPTY_CHOICE, arc_easy, UserError, "Question 1 of .* right one, from 0"),
    ],
)
def test_files_that_cannot_be_used_are_named(file, text, read, error, message, tmp_path):
    data = write_data(tmp_path / "data")
    if text is None:
        (data / file).unlink()
    else:
        (data / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        read(str(data))
