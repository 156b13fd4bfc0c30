"""Private or undocumented parts of other libraries that the laboratory uses; see `revformers.private_api`.

Also private: `lab.evaluation.language_model` overrides `HFLM._loglikelihood_tokens` of lm-evaluation-harness, which
receives every scored request with its tokens. `tests/lab/test_private_api.py` has a test for each part.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedConfig, PreTrainedModel


def cpu_allocations(function: Callable[[], object]) -> list[int]:
    """Call `function` and return the sizes in bytes that PyTorch's allocator allocated and freed on the CPU, in order.

    A freed block is negative. PyTorch: the names of the profiler's memory events in an exported trace, and the number 0
    that stands for the CPU there; the profiler's public sums do not give the memory at a moment.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    ours = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(ours, key=lambda event: event["ts"])]


def model_from_config(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model with fresh weights in the dtype of its configuration.

    transformers: `_from_config`. The public `from_config` belongs to the auto classes, which do not know every class.
    """
    return model_class._from_config(config)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention kernel of a model, even to one that its class does not list.

    transformers: `_attn_implementation`; the public `set_attn_implementation` refuses kernels that the class does not
    list.
    """
    model.config._attn_implementation = name


def run_experts_in_turn(model: PreTrainedModel) -> None:
    """Let a mixture of experts run its experts one after another; no effect on other models.

    transformers: `_experts_implementation`; the public `set_experts_implementation` refuses models without experts.
    """
    model.config._experts_implementation = "eager"


NOISE = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Custom kwargs can be passed to `--metadata`",
    # logged once per request; `evaluate` warns once per task instead
    "Combined length of context",
    "Left truncation applied",
)
"""Beginnings or parts of the harness's warnings that do not concern the user of `evaluate`."""


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Suppress the harness's messages about itself, and its progress bar for building the prompts of every task.

    lm-evaluation-harness: the loggers `eval_logger` of two modules, words of their warnings, and the name of the bar.
    If these change, more is printed.
    """
    import lm_eval.api.task
    import lm_eval.models.huggingface

    modules = (lm_eval.api.task, lm_eval.models.huggingface)
    bar = lm_eval.api.task.tqdm
    for module in modules:
        module.eval_logger.addFilter(_is_said)
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        for module in modules:
            module.eval_logger.removeFilter(_is_said)


def _is_said(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(noise in message for noise in NOISE)


def tokens_to_write(options: dict[str, Any], most: int) -> int:
    """Return how many tokens a task lets a model generate, but not more than `most`.

    lm-evaluation-harness: `normalize_gen_kwargs` of `lm_eval.models.utils`, which knows all names of this option.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    return normalize_gen_kwargs(dict(options), most)["max_gen_toks"]
