"""Measures the head's loss by three methods: all logits at once, chunks, and PyTorch's linear_cross_entropy.

    python -m lab.studies.head_memory --output RESULT.json

The network is a Llama without layers, so only the head uses memory. Peaks are those of a forward and backward pass
above weights, gradients and inputs; errors are those of whole gradients against float64, ||g - g64|| / ||g64||. Times
are medians, with the arms in turns.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lab.bench.environment import output_file, write_result
from lab.bench.meter import peak_allocated_bytes
from lab.bench.step_time import measure_step_times
from lab.command import as_command
from revformers.head.loss import apply_head
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

CASES = ("float32", "float32 frozen", "bfloat16", "bfloat16 frozen", "autocast")
"""Dtype of weights and hidden states, or float32 weights under bfloat16 autocast; "frozen" trains no weight."""

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(weight: Tensor, autocast: bool) -> dict[str, Loss]:
    """Return all functions that compute the loss of hidden states (batch, tokens, width) and labels, by name."""

    def transformers(head: str) -> Loss:
        vocabulary, width = weight.shape
        model: Any = LlamaForCausalLM(
            LlamaConfig(vocab_size=1, hidden_size=width, num_hidden_layers=0, num_attention_heads=1)
        )
        model.config.vocab_size = vocabulary
        model.model.norm, model.lm_head.weight = nn.Identity(), weight
        apply_head(model, head)  # type: ignore[arg-type]
        return lambda hidden, labels: model(inputs_embeds=hidden, labels=labels).loss

    def linear_cross_entropy(hidden: Tensor, labels: Tensor) -> Tensor:
        # This function does not respond to autocast.
        dtype = torch.bfloat16 if autocast else weight.dtype
        result: Tensor = functional.linear_cross_entropy(
            hidden[:, :-1].flatten(0, 1).to(dtype),
            weight.to(dtype),
            labels[:, 1:].flatten(),
            options=nn.LinearCrossEntropyOptions(),
        )
        return result

    arms = {"all logits": transformers("own"), "chunked": transformers("chunked")}
    if hasattr(functional, "linear_cross_entropy"):  # torch >= 2.13
        arms["PyTorch"] = linear_cross_entropy
    return arms


def exact(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients with respect to hidden states and weight, computed in float64."""
    hidden, weight = hidden[:, :-1].flatten(0, 1).double(), weight.double()
    targets = labels[:, 1:].flatten()
    loss, of_hidden, of_weight = torch.zeros((), dtype=torch.float64), [], torch.zeros_like(weight)
    for rows, row_targets in zip(hidden.split(64), targets.split(64), strict=True):
        scores = rows @ weight.T
        loss -= scores.log_softmax(-1).gather(1, row_targets[:, None]).sum()
        scores = scores.softmax(-1)
        scores[torch.arange(len(rows)), row_targets] -= 1
        of_hidden.append(scores @ weight)
        of_weight.addmm_(scores.T, rows)
    number = len(targets)
    return loss / number, torch.cat(of_hidden) / number, of_weight / number


def error(result: Tensor, reference: Tensor) -> float:
    """Return ||result - reference|| / ||reference||."""
    return float((result.detach().double() - reference).norm() / reference.norm())


def study(case: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every arm of one case."""
    precision, _, frozen = case.partition(" ")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    generator = torch.Generator().manual_seed(options.seed)
    shape = options.batch_size, options.sequence_length
    hidden = torch.randn(*shape, options.width, generator=generator).to(dtype).requires_grad_()
    weights = 0.02 * torch.randn(options.vocabulary, options.width, generator=generator)
    weight = nn.Parameter(weights.to(dtype), requires_grad=not frozen)
    labels = torch.randint(options.vocabulary, shape, generator=generator)
    references = exact(hidden.detach(), weight.detach(), labels)
    arms = losses(weight, precision == "autocast")

    def step(name: str, number: int = 0) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = arms[name](hidden, labels)
        loss.backward()
        return loss.detach()

    rows: list[dict[str, Any]] = []
    for name in arms:
        hidden.grad = weight.grad = None
        loss = step(name)
        assert hidden.grad is not None
        rows.append(
            {
                "case": case,
                "arm": name,
                "loss_error": error(loss, references[0]),
                "hidden_gradient_error": error(hidden.grad[:, :-1].flatten(0, 1), references[1]),
                "weight_gradient_error": None if weight.grad is None else error(weight.grad, references[2]),
                "peak": peak_allocated_bytes(partial(step, name), hidden.device),
            }
        )
        rows[-1]["peak_over_all_logits"] = rows[-1]["peak"] / rows[0]["peak"]
    times = measure_step_times({name: partial(step, name) for name in arms}, options.rounds, 0)
    for row in rows:
        row["seconds"] = dataclasses.asdict(times.summary(row["arm"]))
    return rows


def main() -> None:
    """Measure all cases, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of every arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    console = command_console()
    table = TitledTable(
        left=("case",), right=("loss", "peak MiB", "of all logits", "seconds", "errors: loss", "hidden", "weight")
    )
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        of_case = study(case, options)
        rows += of_case
        for row in of_case:
            of_weight = row["weight_gradient_error"]
            table.add(
                case,
                row["arm"],
                f"{row['peak'] / 2**20:,.1f}",
                f"{row['peak_over_all_logits']:.2%}",
                f"{row['seconds']['median']:.2f}",
                f"{row['loss_error']:.1e}",
                f"{row['hidden_gradient_error']:.1e}",
                "" if of_weight is None else f"{of_weight:.1e}",
            )
        console.print(f"{case} done")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_result(options.output, {**settings, "rows": rows}, sys.argv[1:], program="python -m lab.studies.head_memory")
    console.print(table)


if __name__ == "__main__":
    as_command(main)
