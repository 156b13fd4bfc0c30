"""A search for the modules of a model that compute something else when they are given the same again."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from revformers.activations import Store
from revformers.engine.proof.checksum import checksum_of_all
from revformers.engine.replay import RandomState
from revformers.models.attach import activations_set_to
from revformers.models.batch import inputs_of
from revformers.models.forward import CURRENT_RUN, Pass
from revformers.models.parts import require_reversible

Call = tuple[str, int]
"""The name of a module, and how often it was called before in the forward pass."""


def nondeterministic_modules(model: nn.Module, batch: Mapping[str, Any], *, repeats: int = 5) -> tuple[str, ...]:
    """Return the names of the modules that return other bits for the same input, as after a `RebuildMismatchError`.

    Runs forward passes on the same batch from the same random state, in the model's current mode, with stored
    activations. A module is named if its arguments had the bits of the first pass in a later one and its outputs had
    not; to the arguments of a layer belong the two states that it steps from. Of modules that contain one another, only
    the innermost is named. A module that is reached by the outputs of a nondeterministic one can be judged only once
    that one is fixed. Hooks on a module count as a part of it.

    The model's policy, the report of a budget and the random state are restored. What modules count in forward passes
    is not: running statistics in buffers, such as those of batch normalisation in training, and counters in attributes
    and hooks have seen the batch `repeats` + 1 times afterwards.

    Args:
        model: a reversible model.
        batch: keyword arguments of the model, e.g. ``{"input_ids": int64[batch, tokens]}``. Tensors are moved to the
            model's device.
        repeats: number of passes that are compared with the first. A kernel may return the same bits many times.

    Returns:
        The names in the order of the calls in the first pass; empty if nothing differed.

    Raises:
        TypeError: if the batch is no mapping.
        ValueError: if the model is not reversible, or `repeats` is below 1.

    """
    if repeats < 1:
        raise ValueError(f"At least one pass has to be compared with the first; repeats is {repeats}.")
    require_reversible(model)
    device = next(model.parameters()).device
    inputs, random_state = inputs_of(batch, device), RandomState.of(device)
    with activations_set_to(model, Store()):
        first, *others = (_calls(model, inputs, random_state) for _ in range(repeats + 1))
    found = {
        name
        for calls in others
        for (name, number), (given, returned) in calls.items()
        if (known := first.get((name, number))) and known[0] == given and known[1] != returned
    }
    names = dict.fromkeys(name for name, _ in first if name in found)
    return tuple(name for name in names if not any(_is_inside(other, name) for other in found))


def _calls(
    model: nn.Module, inputs: Mapping[str, Any], random_state: RandomState
) -> dict[Call, tuple[list[int], list[int]]]:
    """Run a forward pass; return the checksums of what every call of a module was given and of what it returned."""
    given: dict[Call, list[int]] = {}
    calls: dict[Call, tuple[list[int], list[int]]] = {}
    counts: dict[str, int] = defaultdict(int)
    not_returned: dict[str, list[int]] = defaultdict(list)  # a module may call itself

    def before(name: str, module: nn.Module, arguments: Any, keywords: Any) -> None:
        not_returned[name].append(counts[name])
        # A module may write to its arguments.
        given[name, counts[name]] = _checksums((arguments, keywords)) + _states(module)
        counts[name] += 1

    def after(name: str, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        call = name, not_returned[name].pop()
        calls[call] = given[call], _checksums(output)

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(partial(before, name), prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(partial(after, name), with_kwargs=True))
        with random_state.restored(), torch.enable_grad():  # without gradients kernels may choose another algorithm
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _states(module: nn.Module) -> list[int]:
    """Return the checksums of the states that a layer steps from, which its argument shows in part; none for others."""
    run = CURRENT_RUN.get()
    if not hasattr(module, "_reversible_role") or not isinstance(run, Pass) or run.states is None:
        return []
    return run.states.checksum().tolist()


def _checksums(value: Any) -> list[int]:
    """Return the checksums of the tensors in what a module is given or returns."""
    return [int(checksum_of_all(tensor)) for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")
