"""Reads the documents of the local tasks from files in a directory that the user names."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from datasets import Dataset

from revformers.data.placed_records import placed_lines, placed_records
from revformers.errors import UserError


def piqa(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return PIQA's validation documents: goal, sol1, sol2, and label, 0 or 1.

    Raises:
        FileNotFoundError: if `piqa/valid.jsonl` or `piqa/valid-labels.lst` is missing.
        UserError: if a line cannot be read, or if the two files differ in length.

    """
    questions, labels = (_file(data_directory, f"piqa/{name}") for name in ("valid.jsonl", "valid-labels.lst"))
    documents = _rows(questions, ("goal", "sol1", "sol2"))
    answers = "".join(_lines(labels)).split()
    if not set(answers) <= {"0", "1"}:
        raise UserError(f"{labels} must hold a 0 or a 1 in every line.")
    if len(documents) != len(answers):
        raise UserError(f"{labels} has {len(answers)} labels for the {len(documents)} questions of {questions.name}.")
    return {
        "validation": Dataset.from_list(
            [document | {"label": int(label)} for document, label in zip(documents, answers, strict=True)]
        )
    }


def arc_easy(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return ARC's easy test documents: question, choices (text and label of each), and answerKey, a label.

    Raises:
        FileNotFoundError: if `arc/arc_easy.jsonl` is missing.
        UserError: if a line cannot be read.

    """
    return {"test": _choice_questions(data_directory, "arc/arc_easy.jsonl", "question")}


def arc_challenge(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return ARC's challenge test documents, in the columns of `arc_easy`.

    Raises:
        FileNotFoundError: if `arc/arc_challenge.jsonl` is missing.
        UserError: if a line cannot be read.

    """
    return {"test": _choice_questions(data_directory, "arc/arc_challenge.jsonl", "question")}


def openbookqa(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return OpenBookQA's test documents: question_stem, and choices and answerKey as in `arc_easy`.

    Raises:
        FileNotFoundError: if `openbookqa/test.jsonl` is missing.
        UserError: if a line cannot be read.

    """
    return {"test": _choice_questions(data_directory, "openbookqa/test.jsonl", "question_stem")}


def winogrande(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return WinoGrande's validation documents: sentence, with _ for the blank, option1, option2, and answer, 1 or 2.

    Raises:
        FileNotFoundError: if `winogrande/validation.jsonl` is missing.
        UserError: if a line cannot be read, or if a sentence has no blank.

    """
    path = _file(data_directory, "winogrande/validation.jsonl")
    documents = _rows(path, ("sentence", "option1", "option2", "answer"))
    for number, document in enumerate(documents, start=1):
        if "_" not in document["sentence"] or document["answer"] not in ("1", "2"):
            raise UserError(f'Question {number} of {path} needs a _ for the blank and the answer "1" or "2".')
    return {"validation": Dataset.from_list(documents)}


def gsm8k(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return GSM8K's training documents, which provide the solved examples, and its test documents.

    Raises:
        FileNotFoundError: if `gsm8k/train.jsonl` or `gsm8k/test.jsonl` is missing.
        UserError: if a line cannot be read.

    """
    return {
        split: Dataset.from_list(_rows(_file(data_directory, f"gsm8k/{split}.jsonl"), ("question", "answer")))
        for split in ("train", "test")
    }


def wikitext(data_directory: str, **_: Any) -> dict[str, Dataset]:
    """Return the pages of WikiText-2's test text.

    Raises:
        FileNotFoundError: if `wikitext-2/test.txt` is missing.
        UserError: if the file is empty.

    """
    path = _file(data_directory, "wikitext-2/test.txt")
    documents = [{"page": page} for page in split_pages(_lines(path))]
    if not documents:
        raise UserError(f"{path} is empty.")
    return {"test": Dataset.from_list(documents)}


def split_pages(lines: Iterable[str]) -> Iterator[str]:
    """Split running text into pages at its level-one headings, ` = Title = `; a page begins with its heading.

    Deeper headings, ` = = Section = = `, stay in their page. Blank text is not a page.
    """
    page: list[str] = []
    for line in lines:
        words = line.split()
        heading = len(words) > 2 and words[0] == words[-1] == "=" and words[1] != "=" != words[-2]
        if heading and page:
            yield from _page(page)
            page = []
        page.append(line)
    yield from _page(page)


def _page(lines: list[str]) -> Iterator[str]:
    text = "".join(lines)
    if text.strip():
        yield text


def _file(data_directory: str, name: str) -> Path:
    """Return the path of a data file, or raise FileNotFoundError."""
    directory = Path(data_directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no data directory {data_directory!r}.")
    if not (directory / name).is_file():
        raise FileNotFoundError(f"The data directory {data_directory!r} holds no file {name}, which the task reads.")
    return directory / name


def _choice_questions(data_directory: str, name: str, question: str) -> Dataset:
    """Return multiple-choice questions in the columns of the hub's data sets, which the harness's tasks read.

    Args:
        data_directory: the directory of the local tasks' files.
        name: the file, whose lines have question, choices (texts), and answer, the index of the right one, from 0.
        question: the column from which the task reads the question.

    """
    path = _file(data_directory, name)
    documents = []
    for number, row in enumerate(_rows(path, ("question",), ("choices", "answer")), start=1):
        texts, answer = row["choices"], row["answer"]
        if not (
            isinstance(texts, list)
            and all(isinstance(text, str) and text.strip() for text in texts)
            and isinstance(answer, int)
            and not isinstance(answer, bool)
            and 0 <= answer < len(texts) <= len(ascii_uppercase)
        ):
            raise UserError(
                f"Question {number} of {path} needs a list of texts as choices, and as answer the index of the right "
                f"one, from 0."
            )
        labels = list(ascii_uppercase[: len(texts)])
        choices = {"text": texts, "label": labels}
        documents.append({question: row["question"], "choices": choices, "answerKey": labels[answer]})
    return Dataset.from_list(documents)


def _rows(path: Path, texts: tuple[str, ...], others: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return the columns of every non-blank line of a JSON Lines file; those in `texts` hold text."""
    rows, columns = [], (*texts, *others)
    for place, record in placed_records([path]):
        if not record.keys() >= set(columns):
            raise UserError(f"{place} is not a JSON object with {', '.join(columns)}.")
        row = {column: record[column] for column in columns}
        for column in texts:
            if not isinstance(row[column], str) or not row[column].strip():
                raise UserError(f"{place} has no text as {column}, but {row[column]!r}.")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty.")
    return rows


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, including their line ends."""
    return [record["text"] for _, record in placed_lines(path)]
