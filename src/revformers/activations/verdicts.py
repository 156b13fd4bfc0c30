"""What became of the comparisons of a backward pass, and the error for one that failed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import Variable

from revformers.activations.situation import Situation
from revformers.errors import RebuildMismatchError

REMEDY = (
    "The layers must compute the same result twice: call backward before weights, buffers or adapters change (an "
    "optimizer step, set_adapter, merging, freezing, entering or leaving disable_adapter(), eval()), keep global "
    "settings such as sdpa_kernel, and make kernels deterministic (torch.use_deterministic_algorithms(True)); or train "
    'with revformers.set_activations(model, "store"), and without MLP tiles.'
)


def mismatch(what: str, situation: Situation, *, before_all: bool = False) -> RebuildMismatchError:
    """Return the error for a step whose second evaluation is not the first.

    Args:
        what: what differs, a sentence without its full stop.
        situation: the modules of the step as the forward pass had them; what changed since is said.
        before_all: whether no gradient has come out of the layers yet.

    """
    damage = ""
    if situation.trains_in_backward() and not before_all:
        damage = "Weights above it were stepped in this backward pass already: go back to a checkpoint. "
    return RebuildMismatchError(f"{what}, so the gradients would be wrong. {situation.in_words()}{damage}{REMEDY}")


@dataclass
class Verdicts:
    """Comparisons whose results may still be on a device.

    On a CPU a result is looked at when it is there, so that no gradient of a wrong layer gets out. Elsewhere the device
    is waited for once, at the end of every backward pass, whole or partial.

    Attributes:
        at_once: whether results are looked at when they come.

    """

    at_once: bool
    _pass: int | None = None
    _waiting: list[tuple[str, Tensor, Situation]] = field(default_factory=list)

    def add(self, name: str, equal: Tensor, situation: Situation) -> None:
        """Take the result of a comparison, bool[], under the name of the step that it is about.

        Raises:
            RebuildMismatchError: where it is looked at now and false.

        """
        self._waiting.append((name, equal, situation))
        this_pass = torch._C._current_graph_task_id()
        if self.at_once or this_pass == -1:  # outside of one, as when a debugger asks a node for its tensors
            self.look()
        elif this_pass != self._pass:  # a pass that fails does not come to its end
            self._pass = this_pass
            Variable._execution_engine.queue_callback(self.look)

    def look(self) -> None:
        """Wait for all results; raise RebuildMismatchError for the first that is false."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        device = waiting[0][1].device
        equal = torch.stack([result.to(device) for _, result, _ in waiting])
        if torch.equal(equal, torch.ones_like(equal)):
            return
        name, _, situation = waiting[equal.tolist().index(False)]
        raise mismatch(
            f"The backward pass rebuilt another input of {name} than the forward pass had, or evaluated it to another "
            f"result",
            situation,
        )
