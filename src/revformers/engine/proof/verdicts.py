"""The results of comparisons in a backward pass, and the error for one that failed."""

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revformers.engine.proof.situation import Situation
from revformers.errors import RebuildMismatchError
from revformers.private_api import at_end_of_backward_pass, current_backward_pass

CHANGED = "Call backward before such a change, or undo it and repeat the forward pass."

UNSEEN = (
    "Look at what the modules do not show: masks and other inputs, or a weight's data, that are written to; weights "
    "given by torch.func.functional_call; what modules keep in attributes or read elsewhere; settings of PyTorch "
    "(sdpa_kernel, the number of threads); random numbers of a generator that PyTorch does not know, or that several "
    "threads draw at once; and kernels that are not deterministic (torch.use_deterministic_algorithms(True)). "
    "revformers.nondeterministic_modules(model, batch) names the part that does not repeat itself. Or train with "
    "revformers.set_activations(model, revformers.Store()), and without MLP tiles: nothing is evaluated twice then."
)
"""The remedy where the second evaluation of a layer differs and no change of the layer is visible."""

_DREW_OTHERWISE = (
    "Another thread may have drawn at the same time: all threads of a process share PyTorch's generator, so dropout in "
    "several threads is not supported. Train one model per process, or without dropout."
)
"""The remedy, before `UNSEEN`, where the random generator was left in another state than in the forward pass."""

_OWN_WRITES = (
    "The layer itself writes to {} when it is evaluated: if that is why, do it outside of the layers, such as after "
    "the optimizer's step, or train with revformers.set_activations(model, revformers.Store())."
)
"""The remedy where the layer may have changed its parameters itself."""

_FEW = 4
"""How many changes a message names."""


def _in_words(changes: list[str]) -> str:
    if not changes:
        return ""
    more = len(changes) - _FEW
    rest = f"; and {more} more change{'s' if more > 1 else ''}" if more > 0 else ""
    return f"Since the forward pass {'; '.join(changes[:_FEW])}{rest}. "


def mismatch(
    what: str,
    situation: Situation,
    *,
    says_why: bool = False,
    before_all: bool = False,
    late: bool = False,
    drew_otherwise: bool = False,
) -> RebuildMismatchError:
    """Return the error for a step whose second evaluation differs from the first.

    Args:
        what: what differs, a sentence without its full stop.
        situation: the record of the step's modules in the forward pass; the error names changes since.
        says_why: whether `what` is the cause.
        before_all: whether the layers have produced no gradient yet.
        late: whether the layers may have produced all gradients.
        drew_otherwise: whether the step drew other random numbers.

    """
    damage = ""
    trains_in_backward = situation.trains_in_backward()
    if trains_in_backward and before_all:
        damage = "An optimizer that steps in the backward pass may have stepped the head already, and no layer. "
    elif trains_in_backward:
        damage = (
            "An optimizer that steps in the backward pass may have stepped weights already: go back to a checkpoint. "
        )
    # Weights that the optimizer stepped in this pass are not a cause.
    tensors = [] if late and trains_in_backward else situation.tensor_changes()
    changes = _in_words(situation.setting_changes() + tensors)
    unseen = f"{_DREW_OTHERWISE} If that is not why: {UNSEEN}" if drew_otherwise else UNSEEN
    remedy = unseen
    if tensors or says_why:
        remedy = CHANGED
    elif changes:
        remedy = f"{CHANGED} If that is not why: {unseen}"
    own_writes = situation.own_writes()
    if own_writes:
        remedy = f"{remedy} {_OWN_WRITES.format(' and '.join(own_writes[:_FEW]))}"
    clear = (
        "" if before_all else " Gradients from before the error are there: clear them (zero_grad) before the next pass."
    )
    return RebuildMismatchError(
        f"{what[0].upper()}{what[1:]}, so the gradients would be wrong. {changes}{damage}{remedy}{clear}"
    )


Result = tuple[Tensor, Callable[[], Exception]]
"""The result of a comparison, bool[], and the function that makes the error for a false one."""


@dataclass
class Verdicts:
    """Comparisons whose results may still be on a device.

    On a CPU each result is checked at once, before any gradient of a wrong layer is returned. On other devices the
    results of all comparisons in a backward pass, whole or partial, are checked together at its end, so that it waits
    for the device once.

    Attributes:
        at_once: whether each result is checked at once.

    """

    at_once: bool
    _waiting: list[Result] = field(default_factory=list)
    # One thread's pass may end, and look, while another adds.
    _lock: AbstractContextManager[Any] = field(default_factory=threading.Lock)

    def add(self, equal: Tensor, error: Callable[[], Exception]) -> None:
        """Add a `Result`.

        Raises:
            Exception: the error, if the result is checked at once and false.

        """
        with self._lock:
            self._waiting.append((equal, error))
        this_pass = current_backward_pass()
        if self.at_once or this_pass is None:  # outside of one, as when a debugger asks a node for its tensors
            self.look()
        else:
            _look_at_end_of(this_pass, self)

    def look(self) -> None:
        """Wait for all results; raise the error of the first that is false."""
        _raise_first(self.take())

    def take(self) -> list[Result]:
        """Return the results that nobody has looked at, which are then no longer waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting


class _EndOfPass:
    """What the end of one backward pass looks at."""

    def __init__(self) -> None:
        self.verdicts: list[Verdicts] = []

    def look(self) -> None:
        _raise_first([result for verdicts in self.verdicts for result in verdicts.take()])


# Only the callback of a pass holds its entry, so PyTorch drops that of a pass that fails.
_ENDS: "weakref.WeakValueDictionary[int, _EndOfPass]" = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _look_at_end_of(backward_pass: int, verdicts: Verdicts) -> None:
    with _LOCK:
        end = _ENDS.get(backward_pass)
        if end is None:
            end = _ENDS[backward_pass] = _EndOfPass()
            at_end_of_backward_pass(end.look)
        if not any(known is verdicts for known in end.verdicts):
            end.verdicts.append(verdicts)


def _raise_first(results: Sequence[Result]) -> None:
    if not results:
        return
    device = results[0][0].device
    equal = torch.stack([result.to(device) for result, _ in results])
    if not torch.equal(equal, torch.ones_like(equal)):
        raise results[equal.tolist().index(False)][1]()
