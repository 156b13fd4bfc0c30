"""Measures how wrong gradients are if the states are rebuilt by the floating-point inverse of the recurrence.

    python -m lab.studies.reversal --models MODEL ... --text TEXT --output RESULT.json

The floating-point inverse is that of `lab.float_reversal`; its gradient is compared with ordinary autograd of the same
recurrence in the same formats, so that the inverse is the only difference. Errors are those of the whole gradient, of
the first layer's alone, and of p[0] as the first layer reads it again; they are relative to the norm of the reference,
and reduced in float64. "kept" is the same backward pass with the states of the forward pass: what is left there is the
rounding of the pass itself. For the library, the study counts the parameters whose rebuilt gradients equal stored ones.

The models are pretrained ones, SmolLM2-135M if it is available, one model's configuration with fresh weights, and a
Llama of 24 layers with random weights that are sharpened (initializer_range 0.2).
"""

import argparse
import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import revformers as rf
from lab.bench import smollm2
from lab.bench.environment import output_file, write_result
from lab.bench.workload import llama_config
from lab.command import as_command
from lab.float_reversal import FloatStack, States, put_in_place
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.dynamics.base import Dynamics
from revformers.training.console import command_console
from revformers.training.titled_table import TitledTable

DYNAMICS: dict[str, Dynamics] = {
    "midpoint": rf.Midpoint(),
    "leapfrog": rf.Leapfrog(),
    "hamiltonian": rf.Hamiltonian(),
    "blended 1/2": rf.BlendedMidpoint("1/2"),
    "blended 1/16": rf.BlendedMidpoint("1/16"),
}


@dataclass(frozen=True)
class Format:
    """The dtypes of a training step."""

    weights: torch.dtype
    states: torch.dtype
    autocast: bool = False


FORMATS = {
    "float32": Format(torch.float32, torch.float32),
    "float32, states in float64": Format(torch.float32, torch.float64),
    "autocast": Format(torch.float32, torch.float32, autocast=True),
    "bfloat16 weights": Format(torch.bfloat16, torch.float32),
    "bfloat16 weights and states": Format(torch.bfloat16, torch.bfloat16),
}
OF_THE_LIBRARY = ("float32", "autocast", "bfloat16 weights")
"""The formats of weights and layers; the library chooses its own states for each."""

SHARPENED = "random, sharpened"
SMOLLM2 = "SmolLM2-135M"


@dataclass(frozen=True)
class Network:
    """A network and the tokens that it reads.

    Attributes:
        name: the name in the result.
        make: returns it in float32, for a seed.
        ids: returns int64[batch, tokens], for a seed.
        seeds: what they number: other weights for fresh networks, other text for all.
        controlled: whether "kept" is measured too, at the first seed.

    """

    name: str
    make: Callable[[int], Any]
    ids: Callable[[int], Tensor]
    seeds: int
    controlled: bool = True


def text_of(model: str, file: Path, shape: tuple[int, int]) -> Callable[[int], Tensor]:
    """Return the function that reads stretches of a text, by the tokenizer of a model."""
    tokens = torch.tensor(load_tokenizer(model)(file.read_text(encoding="utf-8")[:200_000])["input_ids"])
    number = math.prod(shape)

    def stretch(seed: int) -> Tensor:
        if len(tokens) < (seed + 1) * number:
            raise SystemExit(f"{file} holds too little text for seed {seed}.")
        return tokens[seed * number : (seed + 1) * number].view(shape)

    return stretch


def pretrained(path: str) -> Callable[[int], Any]:
    """Return the function that loads a model, whatever the seed."""
    return lambda _: load_causal_lm(path, dtype=torch.float32)


def fresh(config: Any) -> Callable[[int], Any]:
    """Return the function that makes networks with random weights."""

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)

    return make


def networks(options: argparse.Namespace) -> Iterator[Network]:
    """Yield the networks of the study."""
    shape = options.batch, options.tokens
    for path in options.models:
        text, name = text_of(path, options.text, shape), Path(path).name
        yield Network(name, pretrained(path), text, options.seeds)
        if name == options.fresh:
            yield Network(f"{name}, fresh", fresh(AutoConfig.from_pretrained(path)), text, options.seeds)
    if options.layers:
        config = llama_config(options.layers, 128, 512, options.tokens, heads=4)
        config = AutoConfig.for_model(**config | {"initializer_range": 0.2})

        def drawn(seed: int) -> Tensor:
            return torch.randint(512, shape, generator=torch.Generator().manual_seed(seed))

        yield Network(SHARPENED, fresh(config), drawn, options.seeds)
    if options.smollm2_seeds:
        try:
            path = str(smollm2.fetch_model())
        except smollm2.ModelUnavailableError as error:
            print(error, file=sys.stderr)
            return
        text = text_of(path, options.text, shape)
        yield Network(SMOLLM2, pretrained(path), text, options.smollm2_seeds, controlled=False)


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass: the loss, the errors of the states by step, and the gradients by parameter."""

    loss: float
    state_errors: list[float]
    gradients: dict[str, Tensor]


def run(model: Any, ids: Tensor, dynamics: Dynamics, kind: Format, states: States) -> Pass:
    """Run the recurrence in floating point on a model in the dtype of `kind.weights`, which is left as it was."""
    layers = model.model.layers
    parameters = dict(model.named_parameters())
    stack = FloatStack(layers, dynamics, kind.states, states)
    model.zero_grad()
    put_in_place(model, stack)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind.autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    finally:
        model.model.layers = layers
    gradients = {name: weight.grad for name, weight in parameters.items() if weight.grad is not None}
    model.zero_grad()
    return Pass(loss.item(), [stack.errors[index] for index in sorted(stack.errors)], gradients)


def comparison(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float | None]:
    """Return the norm of the difference of gradients relative to that of the reference, and their cosine.

    Either is None if it is not finite; the cosine with gradients that are all 0 is 0.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for name, expected in reference.items():
        one, other = found[name].double(), expected.double()
        products = (one - other).square(), other.square(), one * other, one.square()
        sums += torch.stack([product.sum() for product in products])
    difference, squares, product, own = sums.tolist()
    return {
        "error": finite(math.sqrt(difference / squares)),
        "cosine": finite(product / math.sqrt(squares * own)) if own else 0.0,
    }


def finite(number: float) -> float | None:
    """Return a number that JSON can hold."""
    return number if math.isfinite(number) else None


def of_first_layer(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the first layer."""
    return {name: value for name, value in gradients.items() if name.startswith("model.layers.0.")}


def float_rows(
    network: Network, model: Any, ids: Tensor, seed: int, formats: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the errors of the floating-point inverse, in all dynamics."""
    for kind_name in formats:
        kind = FORMATS[kind_name]
        cast = copy.deepcopy(model).to(kind.weights)  # a copy, because weights that were rounded stay so
        for name, dynamics in DYNAMICS.items():
            reference = run(cast, ids, dynamics, kind, "autograd")
            row = {"network": network.name, "dynamics": name, "format": kind_name, "seed": seed, "loss": reference.loss}
            for states in ("kept", "inverse") if network.controlled and not seed else ("inverse",):
                found = run(cast, ids, dynamics, kind, states)
                assert found.loss == reference.loss or math.isnan(reference.loss), "the same forward pass"
                row[states] = {
                    "whole": comparison(found.gradients, reference.gradients),
                    "first_layer": comparison(of_first_layer(found.gradients), of_first_layer(reference.gradients)),
                }
            row["state_errors"] = [finite(error) for error in found.state_errors]
            yield row


def library_rows(
    network: Network, model: Any, ids: Tensor, seed: int, formats: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield how many parameters have the same gradients, to the bit, with rebuilt and with stored activations."""
    for kind_name in filter(OF_THE_LIBRARY.__contains__, formats):
        kind = FORMATS[kind_name]
        for name, dynamics in DYNAMICS.items():
            reversible = rf.make_reversible(copy.deepcopy(model).to(kind.weights), dynamics, rf.Rebuild())
            row = {"network": network.name, "dynamics": name, "format": kind_name, "seed": seed}
            autocast = torch.autocast("cpu", torch.bfloat16) if kind.autocast else contextlib.nullcontext()
            try:
                with autocast:
                    if kind_name != "float32":
                        rf.choose_states(reversible, {"input_ids": ids})
                    report = rf.verify_gradients(reversible, {"input_ids": ids})
            except (rf.StateRangeError, ValueError) as error:
                yield {**row, "refused": str(error)}
                continue
            equal = report.parameters - len(report.differing)
            yield {**row, "parameters": report.parameters, "equal": equal, "states": report.states}


def shown(rows: Iterable[dict[str, Any]]) -> TitledTable:
    """Return the table of the terminal."""
    table = TitledTable(left=("network", "dynamics", "format"), right=("error", "cosine", "first layer", "input"))
    for row in rows:
        whole, first = (row["inverse"][part] for part in ("whole", "first_layer"))
        values = whole["error"], whole["cosine"], first["error"], row["state_errors"][0]
        words = ("not finite" if value is None else f"{value:.3g}" for value in values)
        table.add(row["network"], row["dynamics"], row["format"], *words)
    return table


def main() -> None:
    """Measure all networks, print a table and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=[], help="directories of models that are built like Llama")
    parser.add_argument("--fresh", help="the name of one of them, of which fresh weights are measured too")
    parser.add_argument("--text", type=Path, required=True, help="the text that pretrained models read")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, default=24, help="of the sharpened network; 0 for none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smollm2_seeds", type=int, default=1, help="0 for none")
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    of_the_library: list[dict[str, Any]] = []
    for network in networks(options):
        for seed in range(network.seeds):
            model = network.make(seed).train()
            ids = network.ids(seed)
            if not seed:
                of_the_library += library_rows(network, model, ids, seed, options.formats)
            rows += float_rows(network, model, ids, seed, options.formats)
            print(f"{network.name}, seed {seed}: done", file=sys.stderr, flush=True)
    settings = {
        name: value
        for name, value in vars(options).items()
        if name in ("batch", "tokens", "layers", "seeds", "smollm2_seeds")
    }
    write_result(
        options.output,
        {**settings, "rows": rows, "library": of_the_library},
        sys.argv[1:],
        program="python -m lab.studies.reversal",
    )
    command_console().print(shown(rows))


if __name__ == "__main__":
    as_command(main)
