"""Faults of the files that a training reads: what the command says before it trains."""

import json
from pathlib import Path
from typing import Any

from lab.studies.faults.command import Ended, command
from lab.studies.faults.fault import Fault, Outcome, Scenario
from lab.studies.faults.in_runs import TRAIN, a_finished_run, compared, write_files
from lab.weights import same_weights

RECIPE = """
model: {name: run/model}
conversion: {bits: null}
data: {source: records.jsonl, block_length: 32, validation_blocks: 4}
training:
  max_steps: 2
  per_device_train_batch_size: 2
  eval_steps: 2
  save_steps: 2
  arguments: {use_cpu: true}
"""
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}\n"
    "{% endfor %}"
)
TEXT = "the layer learns the state\n"
RECORDS = 100


def _lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def texts(*faulty: Any) -> bytes:
    """Return .jsonl records of text, of which the last ones are faulty."""
    return _lines([*({"text": TEXT} for _ in range(RECORDS - len(faulty))), *faulty])


def conversation(turns: list[str]) -> dict[str, Any]:
    """Return a record of a conversation whose turns have these roles."""
    return {"messages": [{"role": role, "content": "count to three"} for role in turns]}


def trained_on(name: str, content: bytes, *options: str) -> Scenario:
    """Return a scenario that trains from scratch on one file."""

    def scenario(folder: Path) -> Outcome:
        write_files(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return command(folder, *TRAIN, "--data.source", name, *options).outcome()

    return scenario


def tuned_on(records: list[Any], alike: list[Any] | None = None) -> Scenario:
    """Return a scenario that fine-tunes a small model on records; the weights are compared with those of others."""

    def tune(folder: Path, records: list[Any], output: str) -> Ended:
        (folder / "records.jsonl").write_bytes(_lines(records))
        return command(folder, "finetune", "tuned.yaml", "--output", output)

    def scenario(folder: Path) -> Outcome:
        a_finished_run(folder)
        (folder / "run/model/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        (folder / "tuned.yaml").write_text(RECIPE, encoding="utf-8")
        ended = tune(folder, records, "tuned")
        if ended.code != 0 or alike is None:
            return ended.outcome()
        tune(folder, alike, "alike")
        if same_weights(folder / "tuned/model", folder / "alike/model"):
            return Outcome("right", "the weights that the same turns give as `messages`")
        return Outcome("wrong", "other weights than the same turns give as `messages`")

    return scenario


def _same_text_in(name: str, *others: str) -> Scenario:
    """Return a scenario that trains on the text of the undisturbed run, in a folder with other files."""

    def scenario(folder: Path) -> Outcome:
        write_files(folder)
        text = folder / "text.txt"
        for other in others:
            path = folder / name / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(TEXT * 50, encoding="utf-8")
        (folder / name).mkdir(exist_ok=True)
        text.rename(folder / name / "text.txt")
        return compared(command(folder, *TRAIN, "--data.source", name if others else f"{name}/text.txt"))

    return scenario


def _empty_tokenizer(folder: Path) -> Outcome:
    write_files(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text("{}", encoding="utf-8")
    return command(folder, *TRAIN, "--data.tokenizer", "tokenizer").outcome()


def faults() -> list[Fault]:
    """Return the rows of this section."""
    correct = "Correct the record."
    utf8 = "Save the file as UTF-8."
    long_prompts = [{"prompt": "the layer " * 200, "completion": "learns"}] * RECORDS
    return [
        Fault("A record's text is null", correct, trained_on("a.jsonl", texts({"text": None}))),
        Fault("A record has no text", correct, trained_on("a.jsonl", texts({"title": "layers"}))),
        Fault("A record's text is a number", correct, trained_on("a.jsonl", texts({"text": 5}))),
        Fault("A record's text is a list", correct, trained_on("a.jsonl", texts({"text": ["the", "layer"]}))),
        Fault("A line is not JSON", correct, trained_on("a.jsonl", texts() + b'{"text": \n')),
        Fault("A .jsonl file in Latin-1", utf8, trained_on("a.jsonl", texts() + b'{"text": "\xe9t\xe9"}\n')),
        Fault("A .txt file in UTF-16", utf8, trained_on("a.txt", (TEXT * 100).encode("utf-16"))),
        Fault("An empty file", "Name another file.", trained_on("a.txt", b"")),
        Fault(
            "A text shorter than a block", "Add text, or lower `data.block_length`.", trained_on("a.txt", b"the layer")
        ),
        Fault("A tokenizer.json of `{}`", "Download the tokenizer again.", _empty_tokenizer),
        Fault("Hidden files in the folder of the data", "Nothing.", _same_text_in("data", ".ipynb_checkpoints/a.txt")),
        Fault("Brackets in the path of the data", "Nothing.", _same_text_in("data [1]")),
        Fault(
            "A conversation without an assistant's turn",
            correct,
            tuned_on([*([conversation(["user", "assistant"])] * (RECORDS - 1)), conversation(["user"])]),
        ),
        Fault(
            "Conversations with ShareGPT's columns",
            "Nothing.",
            tuned_on(
                [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}] * RECORDS,
                [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}] * RECORDS,
            ),
        ),
        Fault("Every completion is cut off by the block length", "Raise `data.block_length`.", tuned_on(long_prompts)),
    ]
