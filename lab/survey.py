"""Surveys which of transformers' causal language models can be reversed, tested on a tiny random model of each.

Run ``python -m lab.survey --output docs/appendix/families.md`` to regenerate the table.
"""

import argparse
import collections
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lab.bench.environment import output_file
from lab.command import as_command
from lab.tiny import perturb_, tiny_batch, tiny_model
from revformers.dynamics import BlendedMidpoint, Hamiltonian, Midpoint, Residual
from revformers.errors import NotReversibleError
from revformers.files import write_text
from revformers.models.discovery import find_stack
from revformers.models.families import find_layout
from revformers.models.fields import LayerCall, LayerReturn, layer_inputs, ordinary_field
from revformers.models.verify import verify_gradients
from revformers.reversible import make_residual, make_reversible
from revformers.streams import readable_streams

MEMORY_LIMIT = 8 * 2**30
"""Limit of the worker's address space in bytes: a model that is not tiny ends the worker, not the machine."""

TIME_LIMIT = 300
"""Time limit for one architecture in seconds."""

ROUNDING = 1e-4
"""Largest difference, relative to the largest entry, that counts as rounding in float32."""

EXACT, REFUSED, NOT_BUILT, FAILED = "exact", "refused", "not built", "FAILED"


@dataclass(frozen=True)
class Finding:
    """The result of the survey for one architecture.

    Attributes:
        architecture: the class of the model.
        layers: the classes of its layers.
        block: "exact", "refused", "not built" or "FAILED".
        branch: "exact" if its layers also split into branches, otherwise "".
        note: the reason for a failure, or a remark.

    """

    architecture: str
    layers: tuple[str, ...] = ()
    block: str = FAILED
    branch: str = ""
    note: str = ""


def architectures() -> list[str]:
    """Return the class names of transformers' causal language models, each once."""
    names: set[str] = set()
    for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names.update([value] if isinstance(value, str) else value)
    return sorted(names, key=str.lower)


def examine(name: str) -> Finding:
    """Run the checks on one architecture in order, and stop at the first verdict.

    Args:
        name: a class of transformers, e.g. "LlamaForCausalLM".

    """
    torch.manual_seed(0)
    try:
        model = perturb_(tiny_model(getattr(transformers, name)))
        batch = tiny_batch(model)
        ordinary_logits, ordinary_gradients = _logits(model, batch), _gradients(model, batch)
        if not all(bool(torch.isfinite(values).all()) for values in (ordinary_logits, *ordinary_gradients.values())):
            raise ValueError("the ordinary model gives numbers that are not finite")
    except Exception as error:
        return Finding(name, block=NOT_BUILT, note=_reason(error))
    layers: tuple[str, ...] = ()
    try:
        layers = tuple(sorted({type(layer).__name__ for layer in find_stack(model).layers}))
        make_reversible(model, Residual(), "store")
        _demand("forward" not in vars(model), "the forward of the whole model was replaced, which trainers inspect")
        _demand(_close(_logits(model, batch), ordinary_logits), "Residual gives other logits than the ordinary model")
        gradients = _gradients(model, batch)
        _demand(gradients.keys() == ordinary_gradients.keys(), "Residual gives gradients to other parameters")
        same = _close(_joined(gradients), _joined(ordinary_gradients))
        _demand(same, "Residual gives other gradients than the ordinary model")
        for dynamics in (Midpoint(), BlendedMidpoint("1/4")):
            report = verify_gradients(make_reversible(model.train(), dynamics), batch)
            _demand(report.bit_exact, str(report))
        make_residual(model)
        note = _check_generation(model)
        branch = _check_branches(model, batch)
    except NotReversibleError as error:
        return Finding(name, layers, REFUSED, note=_reason(error))
    except Exception as error:
        return Finding(name, layers, FAILED, note=f"{type(error).__name__}: {_reason(error)}")
    return Finding(name, layers, EXACT, branch, note)


def block_updates(model: PreTrainedModel, batch: dict[str, Any]) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Yield each layer, its update by the layout of its family, and the update that an ordinary model's layer makes."""
    calls: list[tuple[nn.Module, Tensor, dict[str, Any], Tensor]] = []

    def record(layer: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        hidden, *rest = arguments or (keywords.pop("hidden_states"),)
        calls.append(
            (layer, hidden, layer_inputs(layer, tuple(rest), keywords), output[0] if type(output) is tuple else output)
        )

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in find_stack(model).layers]
    with torch.no_grad():
        model.eval()(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer, hidden, inputs, output in calls:
        assert find_layout(layer) is not None
        with torch.no_grad():
            yield layer, ordinary_field(LayerCall(layer, 0, inputs), LayerReturn())(hidden), output - hidden


def _check_branches(model: PreTrainedModel, batch: dict[str, Any]) -> str:
    if any(find_layout(layer) is None for layer in find_stack(model).layers):
        return ""
    for layer, update, expected in block_updates(model, batch):
        _demand(_close(update, expected), f"the layout of {type(layer).__name__} gives another update than the layer")
    report = verify_gradients(make_reversible(model.train(), Hamiltonian()), batch)
    make_residual(model)
    _demand(report.bit_exact, str(report))
    return EXACT


def _check_generation(model: PreTrainedModel) -> str:
    """Compare greedy tokens with and without a key-value cache, unless the ordinary model's own differ."""
    try:
        cached, plain = (_greedy(model, use_cache) for use_cache in (True, False))
    except Exception as error:
        return f"generation not compared: the ordinary tiny model does not generate ({_reason(error)})"
    if not torch.equal(cached, plain):
        return "generation not compared: with and without a cache the ordinary tiny model itself differs"
    make_reversible(model, Midpoint())
    cached, plain = (_greedy(model, use_cache) for use_cache in (True, False))
    make_residual(model)
    _demand(torch.equal(cached, plain), "with and without a key-value cache, greedy tokens differ")
    return ""


@torch.no_grad()
def _greedy(model: PreTrainedModel, use_cache: bool) -> Tensor:
    model.generation_config.eos_token_id = None
    tokens = torch.arange(10, 17)[None]
    return model.eval().generate(
        tokens, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0, return_dict_in_generate=False
    )


@torch.no_grad()
def _logits(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    return model.eval()(**batch).logits


def _gradients(model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the gradients of a training step; dropout draws the same masks every time."""
    torch.manual_seed(0)
    model.train()(**batch).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _joined(gradients: dict[str, Tensor]) -> Tensor:
    """Return all gradients in one vector, which gives them a common scale: the true gradient of some is zero."""
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def _close(values: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(values, expected, rtol=0, atol=ROUNDING * max(scale, 1e-3))


def _demand(fulfilled: bool, complaint: str) -> None:
    if not fulfilled:
        raise AssertionError(complaint)


def _reason(error: Exception) -> str:
    """Return the first sentence of an error's message."""
    text = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


def _work(connection: Connection) -> None:
    """Examine the architectures whose names arrive, until the other side closes the connection."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(examine(name))


class Worker:
    """A process that examines architectures one after another; it is replaced if an architecture ends it.

    Other pools do not suit: in concurrent.futures a dead process ends the whole pool and tasks have no time limit, and
    the processes of `lab.bench.process` have an environment of their own but no time limit.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def examine(self, name: str) -> Finding:
        """Return the finding on the architecture of this name; a dead or stuck worker is a finding too."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_work, args=(other,), daemon=True)
            self._process.start()
            other.close()
        assert self._connection is not None
        try:
            self._connection.send(name)
            if self._connection.poll(TIME_LIMIT):
                return self._connection.recv()
            note = f"took longer than {TIME_LIMIT} seconds"
        except (EOFError, OSError):
            note = f"ended its process, or needed more than {MEMORY_LIMIT >> 30} GiB"
        self.close()
        return Finding(name, note=note)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def render(findings: list[Finding]) -> str:
    """Return the findings as a Markdown page."""
    count = collections.Counter(finding.block for finding in findings)
    branches = sum(bool(finding.branch) for finding in findings)
    rows = [
        f"| {finding.architecture} | {', '.join(finding.layers)} | {finding.block} | {finding.branch} | "
        f"{finding.note.replace('|', '/')} |"
        for finding in findings
    ]
    return INTRODUCTION.format(
        total=len(findings),
        exact=count[EXACT],
        branches=branches,
        refused=count[REFUSED],
        not_built=count[NOT_BUILT],
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        rows="\n".join(rows),
    )


INTRODUCTION = """\
# Model families

This page lists which causal language models of transformers can be made reversible, found by trying each of them. The
command

    python -m lab.survey --output docs/appendix/families.md

writes it. It builds a tiny random model (four layers, width 64, perturbed weights, float32 on a CPU) of each of the
{total} architectures that `AutoModelForCausalLM` knows, and runs the checks below. This run used transformers
{transformers} and torch {torch}. A tiny model shows that the layers of an architecture are understood; it does not show
how well a large one trains under other dynamics.

**{exact} are exact, {branches} of them by branch as well; {refused} are refused; {not_built} were not built.**

* **exact**, block: under `Residual()` the model gives the logits and the gradients of the ordinary model, to rounding.
  Under `Midpoint()` and `BlendedMidpoint(1/4)` every gradient of a training step (with dropout, if the architecture has
  it) is equal to the bit, rebuilt or stored. Under `Midpoint()` greedy generation gives the same tokens with and
  without a key-value cache, if the ordinary tiny model does; otherwise the note says so.
* **exact**, branch: `revformers.models.families` knows where the layer splits into attention and MLP. The two updates
  add up to what the layer adds, to rounding, and the gradients under `Hamiltonian()` are equal to the bit. For families
  without it `granularity="branch"` and `Hamiltonian()` are refused; everything else works.
* **refused**: `make_reversible`, or the first forward pass, raises `NotReversibleError` with the reason in the note.
* **not built**: no tiny model could be built and trained here, for the reason in the note.

| architecture | layers | block | branch | note |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Survey the architectures and write the page; exit with an error if one is neither exact nor refused."""
    parser = argparse.ArgumentParser(description="Survey which causal language models of transformers can be reversed.")
    parser.add_argument("--output", type=output_file, help="the file to write; without it the page is printed")
    parser.add_argument("--only", nargs="+", help="architectures to examine, e.g. LlamaForCausalLM; default: all")
    options = parser.parse_args()
    readable_streams()
    names = options.only or architectures()
    worker = Worker()
    findings = []
    for number, name in enumerate(names, start=1):
        findings.append(worker.examine(name))
        print(f"{number}/{len(names)} {name}: {findings[-1].block} {findings[-1].note}", file=sys.stderr, flush=True)
    worker.close()
    failed = [finding.architecture for finding in findings if finding.block == FAILED]
    if failed:
        sys.exit(f"Neither exact nor refused: {', '.join(failed)}. No page was written.")
    page = render(findings)
    if options.output:
        write_text(options.output, page)
    else:
        print(page)


if __name__ == "__main__":
    as_command(main)
