"""The error for a second evaluation of a layer that differs from the first: what changed, and what to do."""

from revformers.engine.proof.situation import Situation
from revformers.errors import RebuildMismatchError

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
