"""``python -m lab evaluate MODEL --tasks NAME ...``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from revformers.cli.options import read_options
from revformers.errors import UserError, counted
from revformers.files import check_place

if TYPE_CHECKING:
    from lab.evaluation import Comparison, Evaluation, MeanAccuracy, Score
    from revformers.training.titled_table import TitledTable


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a model on tasks of EleutherAI's lm-evaluation-harness, alone or against another on the same documents.

    Two tasks or more also get a mean accuracy: of acc, and of acc_norm, with acc for a task that has no acc_norm.

    Needs: pip install "revformers[lab]".

    Attributes:
        model: Directory, hub id or GGUF file of a causal language model, ordinary or reversible.
        tasks: Tasks or groups of the harness, such as piqa arc_easy mmlu, whose data come from the hub; or local_piqa,
            local_arc_easy, local_arc_challenge, local_openbookqa, local_winogrande, local_gsm8k and local_wikitext,
            which read files below --data.
        against: Another model, such as the one that MODEL was converted from, for a comparison document by document.
        data: Directory of the local tasks' files: piqa/valid.jsonl, piqa/valid-labels.lst; arc/arc_easy.jsonl,
            arc/arc_challenge.jsonl, openbookqa/test.jsonl (lines with question, choices, and answer, the index of the
            right choice, from 0); winogrande/validation.jsonl (sentence, with _ for the blank, option1, option2, and
            answer, "1" or "2"); gsm8k/train.jsonl, gsm8k/test.jsonl; wikitext-2/test.txt.
        limit: Use only the first LIMIT documents of every task.
        batch_size: Sequences in a forward pass.
        add_bos_token: Whether a beginning-of-sequence token precedes a context: auto does what the tokenizer does with
            a text; always or never.
        device: Device to evaluate on, such as cuda.
        out: JSON file for the result.

    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    tasks: tuple[str, ...]
    against: str | None = None
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    add_bos_token: Literal["auto", "always", "never"] = "auto"
    device: str = "cpu"
    out: Path | None = None


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print the table, write it if requested, and return 0.

    Raises:
        FileNotFoundError: if a model or a data file does not exist.
        UserError: for any other mistake that the user can correct.

    """
    options = read_options(EvaluateOptions, "python -m lab evaluate", arguments)
    # imported here, so that the help does not wait for PyTorch
    from lab.bench.environment import without_machine, write_result
    from lab.evaluation import compare
    from revformers.cli.quiet import quiet_libraries
    from revformers.training.console import command_console, say

    quiet_libraries()
    console = command_console()
    if not options.tasks:
        raise UserError("Name a task to evaluate, as in --tasks piqa.")
    if options.out is not None:
        check_place(options.out)
    for name in (options.model, options.against):
        _check_model(name)
    evaluation = _evaluate(options.model, options)
    result: dict[str, Any] = {
        "lm_eval": version("lm_eval"),
        "limit": options.limit,
        "names": {
            "model": without_machine(options.model),
            "against": options.against and without_machine(options.against),
        },
        "model": evaluation.to_dict(),
    }
    if options.against is None:
        table, caption = score_table(evaluation), "± standard error over the documents"
    else:
        against = _evaluate(options.against, options)
        comparison = compare(evaluation, against)
        table = difference_table(comparison)
        caption = (
            "± standard error over the documents; that of the difference, MODEL less AGAINST, is paired by document. "
            "* beyond two standard errors"
        )
        result |= {"against": against.to_dict(), **comparison.to_dict()}
    if options.out is not None:
        write_result(options.out, result, ["evaluate", *arguments])
    console.print(table)
    console.print(f"{caption}; higher (↑) or lower (↓) is better.")
    for sentence in _mean_sentences(evaluation.means):
        console.print(sentence)
    if options.out is not None:
        say(console, f"Written to {options.out}.")
    return 0


def _check_model(name: str | None) -> None:
    """Raise FileNotFoundError if a model does not exist, before the other one is evaluated for hours."""
    from revformers.checkpoints.gguf_file import is_gguf

    is_path = name is not None and (name.startswith((".", "/", "~")) or is_gguf(name))
    if name is not None and is_path and not Path(name).expanduser().exists():
        raise FileNotFoundError(f"There is no model {name!r}.")


def _evaluate(name: str, options: EvaluateOptions) -> "Evaluation":
    """Load one model and evaluate it."""
    from lab.evaluation import evaluate
    from revformers.checkpoints.adapter import load_model_or_adapter
    from revformers.checkpoints.load import load_tokenizer
    from revformers.training.console import command_console, signs_of_life

    model, tokenizer = load_model_or_adapter(name), load_tokenizer(name)
    try:
        model.to(options.device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"PyTorch cannot use the device {options.device!r} here: {error}") from error
    with signs_of_life(command_console(stderr=True), f"evaluating {name}"):
        return evaluate(
            model,
            tokenizer,
            options.tasks,
            data=options.data,
            limit=options.limit,
            batch_size=options.batch_size,
            add_bos_token=options.add_bos_token,
            progress=sys.stderr.isatty(),
        )


def score_table(evaluation: "Evaluation") -> "TitledTable":
    """Return one line per score, below the name of its task, and one per mean accuracy."""
    scores: list[Score | MeanAccuracy] = [*evaluation.scores, *evaluation.means]
    return _table(("value",), [(score, _value_cell(score.value, score.standard_error)) for score in scores])


def difference_table(comparison: "Comparison") -> "TitledTable":
    """Return one line per score and per mean accuracy of two models, with their difference."""
    rows = []
    for difference in (*comparison.differences, *comparison.means):
        score, against = difference.score, difference.against
        cells = (
            _value_cell(score.value, score.standard_error),
            _value_cell(against.value, against.standard_error),
            _value_cell(difference.value, difference.standard_error, sign="+") + (" *" if difference.marked else "  "),
        )
        rows.append((score, *cells))
    return _table(("MODEL", "AGAINST", "difference"), rows)


def _table(columns: Sequence[str], rows: "Sequence[tuple[Score | MeanAccuracy, *tuple[str, ...]]]") -> "TitledTable":
    """Return a table of scores and their cells, in a section for each task."""
    from revformers.training.titled_table import TitledTable

    table, above = TitledTable(left=("metric",), right=columns), None
    for score, *cells in rows:
        heading = _heading(score)
        if heading != above:
            above = heading
            table.add_section(*heading)
        table.add(f"  {_metric_cell(score)}", *cells)
    return table


def _heading(score: "Score | MeanAccuracy") -> tuple[str, str]:
    """Return the heading of a score, and the number of its documents or tasks."""
    from lab.evaluation import MeanAccuracy

    if isinstance(score, MeanAccuracy):
        return "mean", counted(len(score.scores), "task")
    return score.task, counted(len(score.documents), "document")


def _metric_cell(score: "Score | MeanAccuracy") -> str:
    """Return the metric with its filter and its direction."""
    from lab.evaluation import MeanAccuracy

    if isinstance(score, MeanAccuracy):
        return f"{score.metric} ↑"
    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
    answer_filter = "" if score.filter == "none" else f" ({score.filter})"
    return f"{score.metric}{answer_filter}{arrow}"


def _mean_sentences(means: "Sequence[MeanAccuracy]") -> list[str]:
    """Return sentences that explain the mean accuracies."""
    if not means:
        return []
    sentences = ["The mean gives every task the same weight, and its error assumes independent tasks."]
    mean = means[-1]
    if len(set(mean.tasks.values())) > 1:
        plain = [task for task, metric in mean.tasks.items() if metric == "acc"]
        sentences.append(f"{mean.metric}: acc_norm of tasks that have it, and acc of {', '.join(plain)}.")
    if mean.left_out:
        verbs = ("has", "is") if len(mean.left_out) == 1 else ("have", "are")
        sentences.append(f"{', '.join(mean.left_out)} {verbs[0]} neither acc nor acc_norm and {verbs[1]} left out.")
    return sentences


def _value_cell(value: float, error: float | None, sign: str = "") -> str:
    """Return a value and its standard error, rounded according to their size."""
    size = max(abs(value), error or 0)
    if size < 100_000:
        digits = error_digits = ".4f" if size < 10 else ".2f" if size < 1000 else ",.0f"
    else:
        digits, error_digits = ".2e", ".0e"
    return f"{value:{sign}{digits}}" + (f" ± {error:{error_digits}}" if error is not None else "")
