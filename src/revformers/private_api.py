"""What this library uses of other libraries that is private or undocumented, and may break on an upgrade of them.

Each function, class or constant stands for one such use and says why there is no public way. Nothing else in the
package names a private member of another library (ruff's SLF001 and TID251 see to it), and `tests/test_private_api.py`
has a test for each that runs the other library. Where one of them fails after an upgrade, this file is the place to
change.

Unless a docstring says otherwise, an absent member raises AttributeError or ImportError where it is used, and no
gradient is computed without it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# Tensors and their memory


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; inference tensors do not count.

    PyTorch: `Tensor._version`, which its notes on autograd mention and its reference does not.
    """
    return 0 if tensor.is_inference() else tensor._version


def base_of(tensor: Tensor) -> Tensor | None:
    """Return the tensor that `tensor` is a view of; None for what is no view. PyTorch: `Tensor._base`."""
    return tensor._base


def storage_number(storage: torch.UntypedStorage) -> int:
    """Return a number that no other storage has while this one lives.

    PyTorch: `UntypedStorage._cdata`. The public `data_ptr` is 0 for every storage of the meta device.
    """
    return storage._cdata


def inner_tensors(tensor: Tensor) -> list[Tensor] | None:
    """Return the tensors that a wrapper such as DTensor holds; None for a tensor that is no wrapper.

    PyTorch: `is_traceable_wrapper_subclass`, and `__tensor_flatten__`, the protocol of such classes.
    """
    if type(tensor) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(tensor):
        return None
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and values of a tensor in COO layout. PyTorch: the public methods refuse uncoalesced tensors."""
    return tensor._indices(), tensor._values()


# Modules


def parameters_of(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's own parameters by name.

    PyTorch: `Module._parameters`. The public `named_parameters` takes several times as long, and this is called for
    every module of a layer in every step.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> Mapping[str, Tensor | None]:
    """Return a module's own buffers by name. PyTorch: `Module._buffers`; see `parameters_of`."""
    return module._buffers


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return a module's own parts by name. PyTorch: `Module._modules`; `named_children` leaves repetitions out."""
    return module._modules


def forward_pre_hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return the hooks before a module's forward by number. PyTorch: `Module._forward_pre_hooks`."""
    return module._forward_pre_hooks


def forward_hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return the hooks after a module's forward by number. PyTorch: `Module._forward_hooks`."""
    return module._forward_hooks


# Autograd


def transforms_are_active() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, ...) runs. PyTorch: `_are_functorch_transforms_active`."""
    return torch._C._are_functorch_transforms_active()


def current_backward_pass() -> int | None:
    """Return the number of the backward pass that runs; None outside of one. PyTorch: `_current_graph_task_id`."""
    number = torch._C._current_graph_task_id()
    return None if number == -1 else number


def at_end_of_backward_pass(callback: Callable[[], None]) -> None:
    """Have `callback` called when the backward pass that runs has come to its end.

    PyTorch: `queue_callback` of its engine, which DistributedDataParallel and FSDP use as well.
    """
    Variable._execution_engine.queue_callback(callback)


def held_for_saved(node: Any, name: str) -> Any:
    """Return what a node holds for the tensor that it saved under `name`: what the pack hook returned, or the tensor.

    None where it saved none. PyTorch: the attributes `_raw_saved_...` of nodes, which its notes on autograd mention.
    The public ones, `_saved_...`, would unpack the tensor.
    """
    return getattr(getattr(node, f"_raw_saved_{name}", None), "data", None)


def leaf_of_node(node: Node) -> Tensor | None:
    """Return the leaf whose gradient a node accumulates; None for another node. PyTorch: `AccumulateGrad.variable`."""
    return getattr(node, "variable", None)


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Whether `register_hook` gave a tensor hooks. PyTorch: `Tensor._backward_hooks`."""
    return bool(tensor._backward_hooks)


def has_accumulation_hooks(tensor: Tensor) -> bool:
    """Whether `register_post_accumulate_grad_hook` gave a tensor hooks.

    PyTorch: `Tensor._post_accumulate_grad_hooks`, a dictionary once there was a hook.
    """
    return bool(tensor._post_accumulate_grad_hooks)


NODES_THAT_SAVE_THEIR_FACTORS: Mapping[str, tuple[str, ...]] = {
    "MulBackward0": ("self", "other"),
    "SiluBackward0": ("self",),
}
"""Nodes that save all that their result follows from, and under what names.

PyTorch: names of nodes and of what they save. A name that is no longer there costs time, as more tensors are compared.
"""

ATTENTION_NODES = "ScaledDotProduct"
"""How the names of the nodes of fused attention kernels begin.

PyTorch: they save tensors that their kernels do not write in full, under the names below. Where these are others, the
padding is compared as well, and right gradients are refused.
"""

LOG_SUM_EXPS = ("logsumexp", "log_sumexp")
"""Under what names such nodes save a log-sum-exp, whose rows are padded."""

RANDOM_STATES = ("philox_seed", "philox_offset", "rng_state", "unused")
"""Under what names such nodes save the state of a random generator, which is not written without dropout."""


def attention_dropout(node: Any) -> float:
    """Return the probability of dropout that a fused attention kernel ran with. PyTorch: `_saved_dropout_p`."""
    return float(getattr(node, "_saved_dropout_p", 0.0))


# Kernels

ATTENTION_KERNELS = frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "flex_attention",
    }
)
"""The fused attention kernels, by which `scaled_dot_product_attention` and `flex_attention` compute.

PyTorch: names of its kernels. One that is no longer there is evaluated again, and a budget keeps less.
"""


def operations_of(kernel: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> int:
    """Return the floating-point operations of a call of a kernel, 0 where PyTorch does not count them.

    PyTorch: the registry behind `FlopCounterMode`, which counts whole blocks only, and not the CPU's fused attention.
    """
    if kernel.name() == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(*(argument.shape for argument in arguments[:3]))
    count = flop_registry.get(getattr(kernel, "overloadpacket", kernel))
    return int(count(*arguments, **keywords, out_val=output)) if count else 0


def named_arguments(kernel: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a kernel is called with by name; of a higher-order operator, the keywords alone.

    PyTorch: `OpOverload._schema`.
    """
    schema = getattr(kernel, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return dict(zip(names, arguments, strict=False)) | dict(keywords)


class EveryKernel(TorchDispatchMode):
    """Calls `run` instead of every kernel, with the kernel and its arguments, in the block.

    PyTorch: `torch.utils._python_dispatch.TorchDispatchMode`, and its two settings for compiled layers.
    """

    supports_higher_order_operators = True
    """Compiled layers have some: attention by flex_attention, and kernels that draw random numbers."""

    def __init__(self, run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._run = run

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Say that compiled layers stay compiled; otherwise PyTorch would run them eagerly, with other rounding."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._run(func, args, kwargs or {})
