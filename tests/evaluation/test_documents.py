import pytest

from revformers.evaluation.documents import gsm8k, piqa, split_pages, wikitext
from revformers.training.errors import RecipeError
from tests.evaluation.tiny import write_data


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


@pytest.mark.parametrize(
    ("file", "text", "read", "error", "message"),
    [
        ("piqa/valid.jsonl", None, piqa, FileNotFoundError, "holds no file piqa/valid.jsonl"),
        ("piqa/valid-labels.lst", "0\n1\n", piqa, RecipeError, "has 2 labels for the 12 questions"),
        ("piqa/valid-labels.lst", "2\n" * 12, piqa, RecipeError, "a 0 or a 1 in every line"),
        ("gsm8k/test.jsonl", '{"question": "?"}\n', gsm8k, RecipeError, "Line 1 of .* question, answer"),
        ("gsm8k/test.jsonl", "\n[1]\n", gsm8k, RecipeError, "Line 2 of"),
        ("gsm8k/test.jsonl", "\n", gsm8k, RecipeError, "is empty"),
        ("wikitext-2/test.txt", " \n", wikitext, RecipeError, "is empty"),
    ],
)
def test_files_that_cannot_be_used_are_named(file, text, read, error, message, tmp_path):
    data = write_data(tmp_path / "data")
    (data / file).unlink() if text is None else (data / file).write_text(text)
    with pytest.raises(error, match=message):
        read(str(data))
