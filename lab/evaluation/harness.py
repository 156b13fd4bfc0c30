"""Runs tasks of EleutherAI's lm-evaluation-harness on a loaded model."""

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.evaluation.scores import Evaluation, read_scores
from lab.private_api import quiet_harness
from revformers.data.section import AddBosToken
from revformers.data.tokenizer import check_vocabulary
from revformers.errors import UserError

LOCAL_TASKS = {
    f"local_{name}": name
    for name in ("piqa", "arc_easy", "arc_challenge", "openbookqa", "winogrande", "gsm8k", "wikitext")
}
"""The harness's task that each local task repeats."""

logger = logging.getLogger(__name__)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data: str | os.PathLike | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    add_bos_token: AddBosToken = "auto",
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on tasks of lm-evaluation-harness; needs `pip install "revformers[lab]"`.

    Prompts, metrics and windows are the harness's. A window is as long as the model reads (`max_position_embeddings`).
    For a perplexity, a longer text is read in several windows, and every token is scored once. A window begins with the
    last token of the one before it, so its first tokens see little context; only the last window starts further back,
    to be full. If a context and its continuation, or a prompt and the room for an answer, are longer than a window, the
    beginning of the context is cut: `Evaluation.truncated` holds the number of such requests, and a warning is logged
    for each task. An answer longer than a window is refused. No chat template is applied.

    Args:
        model: a causal language model, ordinary or reversible; its mode, training or evaluation, is restored.
        tokenizer: the model's tokenizer.
        tasks: names of tasks or groups of the harness, which fetches their data from the hub, or of the local tasks
            `local_piqa`, `local_arc_easy`, `local_arc_challenge`, `local_openbookqa`, `local_winogrande`,
            `local_gsm8k` and `local_wikitext`.
        data: the directory of the local tasks' files: `piqa/valid.jsonl` and `piqa/valid-labels.lst`,
            `arc/arc_easy.jsonl`, `arc/arc_challenge.jsonl` and `openbookqa/test.jsonl` (lines with question, choices,
            a list of texts, and answer, the index of the right one, from 0), `winogrande/validation.jsonl` (sentence,
            with _ for the blank, option1, option2, and answer, "1" or "2"), `gsm8k/train.jsonl`, `gsm8k/test.jsonl`,
            `wikitext-2/test.txt`.
        limit: use only this many documents of every task, the first ones.
        batch_size: sequences in a forward pass.
        add_bos_token: whether a beginning-of-sequence token precedes a context: auto for what the tokenizer does with a
            text, always or never. A text without a context always follows a first token.
        progress: draw the harness's progress bars.

    Raises:
        FileNotFoundError: if a local task's file is missing.
        UserError: for any other mistake that the user can correct.

    """
    if not tasks:
        raise UserError("Name a task to evaluate, such as piqa or local_piqa.")
    for name, number in (("limit", limit), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise UserError(f"The option {name} must be 1 or more, not {number}.")
    check_vocabulary(model, tokenizer, "give a model with a tokenizer of its own")
    try:
        import lm_eval.evaluator
    except ModuleNotFoundError as error:
        raise UserError('To evaluate models, run: pip install "revformers[lab]".') from error
    from lab.evaluation.language_model import LoadedLanguageModel

    training = model.training
    try:
        with quiet_harness():
            loaded = _load(tasks, data)
            language_model = LoadedLanguageModel(model, tokenizer, batch_size, progress, add_bos_token)
            output = lm_eval.evaluator.evaluate(
                language_model,
                loaded,
                limit=limit,
                bootstrap_iters=0,  # the jackknife gives the standard errors
                log_samples=True,
            )
    finally:
        model.train(training)
    truncated = {name: _truncated(task, language_model) for name, task in loaded["tasks"].items()}
    requests = {name: len(task.instances) for name, task in loaded["tasks"].items()}
    for name, number in truncated.items():
        if number:
            logger.warning(
                "%d of %d requests of %s were longer than the %d tokens that the model reads; the beginning of their "
                "context was cut.",
                number,
                requests[name],
                name,
                language_model.max_length,
            )
    return Evaluation(
        scores=read_scores(output, {name: _aggregations(task) for name, task in loaded["tasks"].items()}),
        requests=requests,
        truncated={name: number for name, number in truncated.items() if number},
        few_shot={name: output["n-shot"][name] for name in requests},
        versions={name: output["versions"][name] for name in requests},
        groups=output["group_subtasks"],
        first_token=language_model.prefix_token_id,
    )


def task_manager(names: Sequence[str], data: str | os.PathLike | None) -> Any:
    """Return the harness's `TaskManager`; it needs half a minute to find its own tasks, so it does so on demand."""
    from lm_eval.tasks import TaskManager

    return TaskManager(
        include_path=str(Path(__file__).parent / "tasks"),
        include_defaults=not set(names) <= LOCAL_TASKS.keys(),
        metadata=None if data is None else {"data_directory": str(data)},
    )


def _load(names: Sequence[str], data: str | os.PathLike | None) -> Any:
    """Return the tasks and groups in `names` with their documents, in the form that the harness's `evaluate` takes."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    local = sorted(set(names) & LOCAL_TASKS.keys())
    if local and data is None:
        raise UserError(f"The task {local[0]} reads local files; name their directory with data (--data).")
    manager = task_manager(names, data)
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; close names are {', '.join(close)}" if close else ""
            raise UserError(f"There is no task {name!r}{hint}.")
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for kind, found in _load_one(manager, name).items():
            loaded[kind] |= found
    for name, task in loaded["tasks"].items():
        if task.get_config("unsafe_code") or getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"The task {name} runs code that the model writes, which is not supported.")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return loaded


def _load_one(manager: Any, name: str) -> Any:
    """Return one task or group with its documents, or raise UserError if the hub does not provide them."""
    try:
        return manager.load([name])
    except (OSError, ImportError) as error:
        if name in LOCAL_TASKS:
            raise
        local = [own for own, original in LOCAL_TASKS.items() if original == name]
        instead = f"; {local[0]} is the same task on local files (--data)" if local else ""
        raise UserError(f"The data of the task {name} cannot be loaded ({error}){instead}.") from error


def _truncated(task: Any, language_model: Any) -> int:
    """Return how many requests of a task lost the beginning of their context."""
    return sum(
        (request.args[0] if request.request_type == "generate_until" else request.args) in language_model.truncated
        for request in task.instances
    )


def _aggregations(task: Any) -> dict[str, str]:
    """Return the name of the aggregation of each metric of a task."""
    return {metric: getattr(function, "__name__", "") for metric, function in task.aggregation().items()}
