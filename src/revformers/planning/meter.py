"""Counts the peak memory of a training step by category, tensor by tensor, on the CPU, on CUDA and on the meta device.

The planner and the measurements share this counter: a dispatch mode that sees every tensor an operator returns and adds
up the storages that are alive, each once. It does not include an allocator's rounding or the memory that a kernel needs
while it runs. The repository's `lab.bench.meter` reads the peak from the allocator's own events; tests compare the two.

PyTorch's private `torch.distributed._tools.mem_tracker.MemTracker` counts the same storages and gives the same peaks
where both were tried. It is not used, for three reasons:

* If autograd holds the last reference to a gradient, it adds the next gradient of the same tensor in place, but never
  under a dispatch mode and never on the meta device. A tracker therefore reports memory that an untracked step does not
  need; `StorageCounter` counts such a sum as the engine would have computed it.
* Its categories (activation, temporary) are not those of this library: states, side information, the head, the working
  set of one layer. Telling these apart would mean overriding private methods.
* It stores gradients in hooks on every module, and takes a snapshot of every module at every operator.
"""

import contextlib
import inspect
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from revformers.engine.ops import ADVANCE, KERNELS
from revformers.engine.proof.checksum import constant_storage
from revformers.errors import NotReversibleError
from revformers.models.discovery import find_stack
from revformers.planning.kernels import Described, alone, described, first_block
from revformers.planning.results import makes_new_tensors, tensors_in
from revformers.planning.timeline import MemoryByCategory, Recorder, Timeline
from revformers.private_api import (
    TorchDispatchMode,
    current_backward_pass,
    inner_tensors,
    is_engine,
    number_of_next_node,
    number_of_running_node,
    storage_number,
    tree_leaves,
    without_dispatch_modes,
)


def peak_by_category(
    step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> MemoryByCategory:
    """Run `step` and return the memory at its peak by category.

    Args:
        step: a forward and backward pass, with or without a step of the optimizer.
        model: on the CPU, CUDA or the meta device; its parameters and layers define the categories. If its layers
            cannot be found (`revformers.models.discovery`), everything that the passes allocate counts as other.
        optimizer: the optimizer whose states exist before the step.

    Returns:
        The categories at the first moment of the peak. A tensor that was made before the step and belongs neither to
        the model nor to the optimizer counts once an operator first returns a view of it; without a view it never
        counts.

    """
    return timeline_of(step, model, optimizer).peak()


def timeline_of(
    step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Timeline:
    """Run `step` and return the memory at every moment; see `peak_by_category`."""
    parameters = list(model.parameters())
    counter = StorageCounter(parameters[0].device)
    counter.assign([*parameters, *model.buffers()], "weights")
    counter.assign([parameter.grad for parameter in parameters if parameter.grad is not None], "gradients")
    if optimizer is not None:
        counter.assign(_states_of(optimizer), "optimizer")
    with counter, _parts_watched(counter, model), _gradients_named(counter, parameters):
        step()
    return counter.timeline


class StorageCounter(TorchDispatchMode):
    """Counts the storages on one device that are alive, each once.

    A storage gets the category of the part that allocates it, which `enter` and `optimizing` set; `assign` changes it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device.type
        self._recorder = Recorder()
        self._constant = storage_number(constant_storage())
        self._storages: dict[int, tuple[str, int, weakref.ref[Any]]] = {}
        self._part = "before"
        # Autograd numbers its nodes in the order of creation: the nodes of a part of the network are an interval.
        self._first_nodes, self._parts = [0], ["before"]
        self.optimizing = False

    @property
    def timeline(self) -> Timeline:
        """Memory at every moment so far."""
        return self._recorder.timeline()

    @property
    def peak(self) -> MemoryByCategory:
        """Memory at the peak so far."""
        return self.timeline.peak()

    def enter(self, part: Literal["layers", "head"]) -> None:
        """Note that the forward pass has entered the layers or left them for the head."""
        if _in_backward():  # a layer is evaluated again
            return
        self._part = part
        self._first_nodes.append(number_of_next_node())
        self._parts.append(part)

    def assign(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count the storages of `tensors` in this category from now on."""
        for storage in map(Tensor.untyped_storage, _plain(tensors, self._device)):
            number = storage_number(storage)
            known = self._storages.get(number)
            if known is None:
                self._add(storage, category)
            elif known[0] != category:
                self._recorder.change(known[0], -known[1])
                self._recorder.change(category, known[1])
                self._storages[number] = (category, *known[1:])
        self._recorder.moment()

    def __exit__(self, *arguments: Any) -> None:
        self._recorder.moment()
        super().__exit__(*arguments)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # the subclass then computes with tensors that this mode sees
        self._recorder.moment()
        self._recorder.operator(func)
        result = func(*args, **(kwargs or {}))
        if func in KERNELS:
            self._recorder.moment(_workspace(func, first_block(described(args))), self._category())
        if func is ADVANCE:
            previous, current, *_, side_information = args
            self.assign([previous, current], "states")
            self.assign([] if side_information is None else [side_information], "side_information")
        for tensor in _plain(tensors_in(result), self._device):
            storage = tensor.untyped_storage()
            number = storage_number(storage)
            if number not in self._storages and number != self._constant:
                existed = not makes_new_tensors(func) and self._is_of_any(number, (args, kwargs))
                self._add(storage, "other" if existed else self._category())
        if not _accumulates(func):
            self._recorder.moment()
        # Without this mode, the engine writes such a sum into its first term if the term is freed now. Memory therefore
        # counts when the next operator begins: the term is then freed, or it is in use and the sum has its own storage.
        return result

    def _is_of_any(self, number: int, values: Any) -> bool:
        tensors = _plain(tensors_in(values), self._device)
        return any(storage_number(tensor.untyped_storage()) == number for tensor in tensors)

    def _category(self) -> str:
        if self.optimizing:
            return "optimizer"
        if not _in_backward():
            return {"before": "other", "layers": "activations", "head": "head"}[self._part]
        number = number_of_running_node() or 0
        part = self._parts[bisect_right(self._first_nodes, number) - 1]
        return {"before": "other", "layers": "working", "head": "head"}[part]

    def _add(self, storage: torch.UntypedStorage, category: str) -> None:
        key, size = storage_number(storage), storage.nbytes()
        self._storages[key] = (category, size, weakref.ref(storage, partial(self._release, key)))
        self._recorder.change(category, size)

    def _release(self, key: int, _: object) -> None:
        category, size, _ = self._storages.pop(key)
        self._recorder.change(category, -size)


class _Workspace(StorageCounter):
    """Counts only the storages that are allocated while it is active."""

    def _category(self) -> str:
        return "working"

    def _add(self, storage: torch.UntypedStorage, category: str) -> None:
        if category == "working":
            super()._add(storage, category)


@lru_cache(maxsize=4096)
def _workspace(kernel: Any, arguments: Described) -> int:
    """Return the bytes that a kernel of the engine allocates while it runs, including its result."""
    with without_dispatch_modes():
        call = alone(kernel, arguments)
        with _Workspace(torch.device("meta")) as counter:
            call()
    return counter.peak.total


def _in_backward() -> bool:
    return current_backward_pass() is not None


def _accumulates(func: Any) -> bool:
    """Say whether autograd's engine adds two gradients of one tensor, as opposed to the code of a node or a user."""
    if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or not _in_backward():
        return False
    caller = inspect.currentframe().f_back.f_back  # type: ignore[union-attr]
    return is_engine(caller)


def _plain(values: Iterable[Any], device: str) -> list[Tensor]:
    """Return the tensors among `values` that lie on the device; wrappers such as quantised weights are unwrapped."""
    result: list[Tensor] = []
    for value in values:
        if not isinstance(value, Tensor):
            continue
        inner = inner_tensors(value)
        if inner is not None:
            result += _plain(inner, device)
        elif value.device.type == device and value.layout is torch.strided:
            result.append(value)
    return result


def _states_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for state in optimizer.state.values() for value in tree_leaves(state)]


def _parts_watched(counter: StorageCounter, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Tell the counter which part of the forward pass runs and when an optimizer steps."""

    def begin(*_: Any) -> None:
        counter.optimizing = True

    def end(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        counter.optimizing = False
        counter.assign(_states_of(optimizer), "optimizer")

    handles = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    try:
        layers = find_stack(model).layers
    except NotReversibleError:
        pass
    else:
        handles.append(layers[0].register_forward_pre_hook(lambda *_: counter.enter("layers")))
        handles.append(layers[-1].register_forward_hook(lambda *_: counter.enter("head")))
    return _registered(handles)


@contextlib.contextmanager
def _gradients_named(counter: StorageCounter, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Tell the counter which tensors are the parameters' gradients.

    Hooks of the parameters themselves would have to be taken for those of an optimizer that steps in the backward pass.
    """

    def accumulated(parameter: Tensor, *_: Any) -> None:
        if parameter.grad is not None:
            counter.assign([parameter.grad], "gradients")

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # A node lives as long as something refers to it, and its hooks as long as the node.
    nodes = [get_gradient_edge(parameter).node for parameter in trained]
    with _registered([node.register_hook(partial(accumulated, one)) for node, one in zip(nodes, trained, strict=True)]):
        yield


@contextlib.contextmanager
def _registered(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
