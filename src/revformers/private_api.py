"""All uses of private or undocumented members of other libraries, which may break on an upgrade of them.

Each function, class or constant stands for one such use and says why there is no public way. No other file of the
package names a private member of another library (ruff's SLF001 and TID251 enforce it), and
`tests/test_private_api.py` has a test for each that runs the other library. If a test fails after an upgrade, change
this file. The functions of other libraries that we wrap are listed in `revformers.integrations`.

Unless a docstring says otherwise, a missing member raises AttributeError or ImportError where it is used, and no
gradient is computed without it.
"""

import contextlib
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import FrameType, FunctionType, SimpleNamespace
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils.flop_counter import flop_registry as flop_registry
from torch.utils.flop_counter import sdpa_backward_flop_count as sdpa_backward_flop_count
from torch.utils.flop_counter import sdpa_flop_count as sdpa_flop_count

# Tensors and their memory


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; 0 for inference tensors, which have no counter.

    PyTorch: `Tensor._version`, which its notes on autograd mention and its reference does not.
    """
    return 0 if tensor.is_inference() else tensor._version


def base_of(tensor: Tensor) -> Tensor | None:
    """Return the tensor that `tensor` is a view of; None if it is not a view. PyTorch: `Tensor._base`."""
    return tensor._base


def storage_number(storage: torch.UntypedStorage) -> int:
    """Return a number that is unique to a storage while it exists.

    PyTorch: `UntypedStorage._cdata`. The public `data_ptr` is 0 for every storage of the meta device.
    """
    return storage._cdata


def inner_tensors(tensor: Tensor) -> list[Tensor] | None:
    """Return the tensors inside a wrapper such as DTensor; None for any other tensor.

    PyTorch: `is_traceable_wrapper_subclass`, `__tensor_flatten__`, the protocol of such classes, and `trigger_wait` of
    the results of its collectives, whose inner tensor is written later.
    """
    if type(tensor) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(tensor):
        return None
    if hasattr(tensor, "trigger_wait"):
        tensor.trigger_wait()
    inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return [part for part in inner if isinstance(part, Tensor)]  # DTensor also names its mesh


def is_partitioned(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter that DeepSpeed's ZeRO-3 gathers for each evaluation and releases after it.

    It has other memory each time, no elements in between, and its version does not change when the optimizer steps.
    DeepSpeed: the attribute `ds_tensor`, the part that this process keeps.
    """
    return hasattr(tensor, "ds_tensor")


def reduction_is_pending_or_off(model: nn.Module) -> bool:
    """Whether FSDP holds gradients that it has not reduced over the processes, or would not reduce those of a pass.

    PyTorch: FSDP2's `_fsdp_param_groups` (2.11: one, `_fsdp_param_group`), what `set_requires_gradient_sync` and
    `set_requires_all_reduce` set in it, and the gradients that it and its `fsdp_params` keep. Under the first version,
    `_sync_gradients`, which `no_sync` sets, and gradients of another shape than their parameters.
    """
    if any(one.grad is not None and one.grad.shape != one.shape for one in model.parameters()):
        return True
    for module in model.modules():
        if not getattr(module, "_sync_gradients", True) or any(map(_keeps_gradients, _groups_of_fsdp(module))):
            return True
    return False


def _groups_of_fsdp(module: nn.Module) -> list[Any]:
    state_of: Any = getattr(module, "_get_fsdp_state", None)
    if state_of is None:
        return []
    state = state_of()
    groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def _keeps_gradients(group: Any) -> bool:
    """Whether a group of FSDP2 keeps gradients of a pass, or would keep those of the next."""
    if not (group.reduce_grads and group.all_reduce_grads) or group._partial_reduce_output is not None:
        return True
    whole = [getattr(one, "_unsharded_param", None) for one in group.fsdp_params]
    return any(one.unsharded_accumulated_grad is not None for one in group.fsdp_params) or any(
        one is not None and one.grad is not None for one in whole
    )


def group_between_nodes(module: nn.Module) -> Any:
    """Return the processes with which hybrid sharding of the first FSDP reduces gradients; None for other modules.

    PyTorch: `FullyShardedDataParallel._inter_node_pg`.
    """
    return getattr(module, "_inter_node_pg", None)


COUNTED_BY_ENGINES = frozenset({"applied_pre_backward_ref_cnt", "ds_grads_remaining"})
"""Attributes of modules in which an engine counts evaluations, second ones too.

DeepSpeed: what ZeRO-3 still has to gather and to reduce. If one is renamed, rebuilding is refused.
"""


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and values of a COO tensor. PyTorch: the public methods refuse uncoalesced tensors."""
    return tensor._indices(), tensor._values()


# Modules


def parameters_of(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's own parameters by name.

    PyTorch: `Module._parameters`. The public `named_parameters` is several times slower, and this is called for every
    module of a layer in every step.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> Mapping[str, Tensor | None]:
    """Return a module's own buffers by name. PyTorch: `Module._buffers`; see `parameters_of`."""
    return module._buffers


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return a module's children by name. PyTorch: `Module._modules`; `named_children` omits duplicates."""
    return module._modules


def forward_pre_hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return a module's forward pre-hooks by number. PyTorch: `Module._forward_pre_hooks`."""
    return module._forward_pre_hooks


def forward_hooks(module: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return a module's forward hooks by number. PyTorch: `Module._forward_hooks`."""
    return module._forward_hooks


# Autograd


def transforms_are_active() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, ...) is active. PyTorch: `_are_functorch_transforms_active`."""
    return torch._C._are_functorch_transforms_active()


def current_backward_pass() -> int | None:
    """Return the number of the current backward pass; None outside of one. PyTorch: `_current_graph_task_id`."""
    number = torch._C._current_graph_task_id()
    return None if number == -1 else number


def at_end_of_backward_pass(callback: Callable[[], None]) -> None:
    """Call `callback` at the end of the current backward pass.

    PyTorch: `queue_callback` of its engine, which DistributedDataParallel and FSDP use as well.
    """
    Variable._execution_engine.queue_callback(callback)


def held_for_saved(node: Any, name: str) -> Any:
    """Return the object that a node saved under `name`: the result of the pack hook, or the tensor; None without one.

    PyTorch: the attributes `_raw_saved_...` of nodes, which its notes on autograd mention. The public ones,
    `_saved_...`, would unpack the tensor.
    """
    return getattr(getattr(node, f"_raw_saved_{name}", None), "data", None)


def leaf_of_node(node: Node) -> Tensor | None:
    """Return the leaf whose gradient a node accumulates; None for other nodes. PyTorch: `AccumulateGrad.variable`."""
    return getattr(node, "variable", None)


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Whether a tensor has hooks of `register_hook`. PyTorch: `Tensor._backward_hooks`."""
    return bool(tensor._backward_hooks)


def has_accumulation_hooks(tensor: Tensor) -> bool:
    """Whether a tensor has hooks of `register_post_accumulate_grad_hook`.

    PyTorch: `Tensor._post_accumulate_grad_hooks`, a dictionary after the first registration.
    """
    return bool(tensor._post_accumulate_grad_hooks)


NODES_THAT_SAVE_THEIR_FACTORS: Mapping[str, tuple[str, ...]] = {
    "MulBackward0": ("self", "other"),
    "SiluBackward0": ("self",),
}
"""Nodes whose saved tensors determine their result, and the names of these tensors.

PyTorch: names of nodes and of their saved tensors. A missing name costs time, because more tensors are compared.
"""

NODES_THAT_DEPEND_ON_THREADS = {"SiluBackward0"}
"""Those of them whose result on a CPU depends on the number of threads as well. PyTorch: names of nodes."""

ATTENTION_NODES = "ScaledDotProduct"
"""The prefix of the names of nodes of fused attention kernels.

PyTorch: these nodes save tensors that their kernels write only in part, under the names below. If the names change,
the unwritten part is compared as well, and correct gradients are refused.
"""

LOG_SUM_EXPS = ("logsumexp", "log_sumexp")
"""Names under which these nodes save a log-sum-exp, whose rows are padded."""

RANDOM_STATES = ("philox_seed", "philox_offset", "rng_state", "unused")
"""Names under which these nodes save the state of a random generator, which is not written without dropout."""


COMPILED_NODES = "CompiledFunction"
"""The prefix of the names of nodes of compiled code.

PyTorch: one such node stands for all kernels of a graph, so that what attention kernels save has no names there. If the
name changes, compiled layers with attention kernels of GPUs are refused.
"""


def held_by_function(node: Any) -> Sequence[Any]:
    """Return what the node of an autograd function in Python holds for its saved tensors: the results of the pack hook.

    PyTorch: the attribute `_raw_saved_tensors`, like those of `held_for_saved`.
    """
    return [saved.data for saved in node._raw_saved_tensors]


def attention_dropout(node: Any) -> float:
    """Return the dropout probability of a fused attention kernel's node. PyTorch: `_saved_dropout_p`."""
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
"""The fused attention kernels of `scaled_dot_product_attention` and `flex_attention`.

PyTorch: names of its kernels. The results of a kernel with another name are recomputed, and a budget keeps less.
"""


CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The fused attention of CPUs, which also runs on the meta device; its memory is linear in the number of tokens."""

CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""The backward pass of `CPU_ATTENTION`."""

_ATTENTION_WITH_HEADS_SECOND = frozenset(
    {
        CPU_ATTENTION,
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
    }
)
"""Kernels whose first arguments are queries, keys and values of shape (batch, heads, tokens, width)."""

READ_NUMBER = torch.ops.aten._local_scalar_dense.default
"""The kernel behind `Tensor.item`, `bool(tensor)` and the like."""

COPY_TO = torch.ops.aten._to_copy.default
"""The kernel behind `Tensor.to` when it copies."""

UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
"""A kernel that returns a view although its schema does not say so."""


def operations_of(kernel: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> int:
    """Return the number of floating-point operations of a kernel call; 0 if PyTorch does not count them.

    PyTorch: the registry behind `FlopCounterMode`, which counts only whole blocks, and not the CPU's fused attention.
    """
    packet = getattr(kernel, "overloadpacket", kernel)
    if packet in _ATTENTION_WITH_HEADS_SECOND:
        query, *others = (argument.shape for argument in arguments[:3])
        # PyTorch 2.11 refuses to count keys and values with fewer heads than the queries (grouped-query attention).
        return sdpa_flop_count(query, *((batch, query[1], *rest) for batch, _, *rest in others))
    count = flop_registry.get(packet)
    return int(count(*arguments, **keywords, out_val=output)) if count else 0


def named_arguments(kernel: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a kernel call by name; for a higher-order operator, only the keyword arguments.

    PyTorch: `OpOverload._schema`.
    """
    schema = getattr(kernel, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return dict(zip(names, arguments, strict=False)) | dict(keywords)


class EveryKernel(TorchDispatchMode):
    """A context that calls `run`, with the kernel and its arguments, instead of every kernel.

    PyTorch: `torch.utils._python_dispatch.TorchDispatchMode`, and its two settings for compiled layers.
    """

    supports_higher_order_operators = True
    """Compiled layers use such operators for flex_attention and for kernels that draw random numbers."""

    def __init__(self, run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._run = run

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Keep compiled layers compiled; otherwise PyTorch would run them eagerly, with other rounding."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._run(func, args, kwargs or {})


def outside_every_kernel() -> AbstractContextManager[Any]:
    """Return a context in which the innermost `EveryKernel` is not active; any other innermost mode stays.

    PyTorch: `_get_current_dispatch_mode` and `_pop_mode_temporarily`.
    """
    is_inside = isinstance(_get_current_dispatch_mode(), EveryKernel)
    return _pop_mode_temporarily() if is_inside else contextlib.nullcontext()


# Counting what a step computes


def number_of_next_node() -> int:
    """Return the number of the next node of the autograd graph; nodes are numbered in the order of their creation.

    PyTorch: `_get_sequence_nr`.
    """
    return torch._C._autograd._get_sequence_nr()


def number_of_running_node() -> int | None:
    """Return the number of the node that the backward pass is evaluating; None outside of a backward pass.

    PyTorch: `_current_autograd_node`, and `_sequence_nr` of a node.
    """
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def is_engine(frame: FrameType | None) -> bool:
    """Whether autograd's engine itself, not the code of a node or a user, called the current operator.

    The engine does so to sum the gradients of a tensor that is used more than once. PyTorch: `_engine_run_backward`, in
    which Python enters the engine, and the files of the wrappers that keep compilers out of dispatch modes.

    Args:
        frame: the caller of the mode's `__torch_dispatch__`; None if the engine runs in its own thread.

    """
    while frame is not None and frame.f_code.co_filename.endswith(("_compile.py", "eval_frame.py")):
        frame = frame.f_back
    return frame is None or frame.f_code is torch.autograd.graph._engine_run_backward.__code__


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context without active dispatch modes. PyTorch: `_disable_current_modes`."""
    return _disable_current_modes()


def schema_of(kernel: Any) -> Any:
    """Return the schema of a kernel: its arguments, results and aliases. PyTorch: `OpOverload._schema`."""
    return kernel._schema


# PyTorch's compiler


def with_own_recompilations(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a function whose recompilations are counted separately.

    PyTorch counts them by code object, up to `torch.compiler.config.recompile_limit`. If that changes, a layer is
    refused, or runs uncompiled, earlier than necessary.
    """
    return FunctionType(function.__code__.replace(), function.__globals__)


def is_refused_write(error: RuntimeError, function: str) -> bool:
    """Whether an error reports an in-place write to a view that the autograd function `function` returned.

    PyTorch: the text of its error, which has no type of its own.
    """
    # PyTorch 2.11 names the function's node.
    names = (function, f"{function}Backward")
    return any(f"of {name} is a view and is being modified inplace" in str(error) for name in names)


def without_deterministic_form(error: RuntimeError) -> str | None:
    """Return the operation that an error says has no deterministic form, as PyTorch names it; None for another error.

    PyTorch: the text of its error, which has no type of its own. If it changes, a verification of such an operation
    ends in that error. Attention for which no allowed kernel can run, as cuDNN's cannot, has an error of its own.
    """
    if str(error).startswith("No available kernel"):
        return "scaled_dot_product_attention"
    return named_without_deterministic_form(str(error))


def named_without_deterministic_form(message: str) -> str | None:
    """Return the operation that an error or a warning says has no deterministic form; None for another message.

    PyTorch: the text, which is the same for both.
    """
    before, found, _ = message.partition(" does not have a deterministic implementation")
    return before.rpartition("\n")[2] if found else None


# transformers


def returns_one_tensor(forward: Callable[..., Any]) -> bool:
    """Whether the forward of a layer is annotated to return one tensor instead of a tuple that begins with it.

    transformers: newer releases return only the hidden state from layers that returned more before, and only the
    annotation shows the difference. If it is wrong, the families' tests fail.
    """
    function = inspect.unwrap(forward)
    # Only the return annotation, because others may use names that exist only for type checkers.
    annotations = {name: hint for name, hint in function.__annotations__.items() if name == "return"}
    hints = get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__)
    return hints.get("return") is Tensor


def calls_loss_function(model_class: type[nn.Module]) -> bool:
    """Whether the forward of a model class, or of one of its bases, uses `self.loss_function`.

    transformers: its causal language models compute their loss by this attribute, which is not documented. A model that
    does not is refused, or keeps its own loss.
    """
    forwards = [inspect.unwrap(vars(base)["forward"]) for base in model_class.__mro__ if "forward" in vars(base)]
    return any("loss_function" in forward.__code__.co_names for forward in forwards)


def was_loaded(model: Any) -> bool:
    """Whether a model of transformers came from `from_pretrained`.

    transformers: `_weight_conversions`, which loading sets on a model. `name_or_path` alone does not suffice: a model
    with fresh weights also has it if its configuration was loaded. Without the attribute, a hint is not given.
    """
    return bool(getattr(model, "name_or_path", "")) and hasattr(model, "_weight_conversions")


def models_of_auto_class(auto: Any) -> Mapping[Any, Any] | None:
    """Return the model classes of an auto class by configuration class; None if `auto` is not an auto class.

    transformers: `_model_mapping`. The public `register` adds to it, but there is no public way to read it.
    """
    return getattr(auto, "_model_mapping", None) if hasattr(auto, "register") else None


NO_REMOTE_CODE: dict[str, None] = {"_auto_class": None}
"""Attributes of a configuration class whose code is not saved with its models.

transformers: `_auto_class`, which `register_for_auto_class` sets for all subclasses as well.
"""


def attention_of(config: Any) -> str | None:
    """Return the name of a model's attention implementation; None if its configuration has none.

    transformers: `_attn_implementation`. The public `set_attn_implementation` sets it, but nothing public reads it.
    """
    return getattr(config, "_attn_implementation", None)


def cached_file_if_any(name: Any, file: str, **options: Any) -> str | None:
    """Return the local path of a file of a directory or hub id, downloaded if necessary; None if there is no such file.

    transformers: a keyword of `cached_file`, whose public form raises the same error for a missing file and for a hub
    that does not answer.
    """
    from transformers.utils import cached_file

    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)


def is_size_mismatch(error: RuntimeError) -> bool:
    """Whether loading failed because weights have other sizes than the model. transformers: the text of its error."""
    return "ignore_mismatched_sizes" in str(error)


def is_state_size_mismatch(error: Exception) -> bool:
    """Whether `load_state_dict` failed because tensors have other sizes. PyTorch: the text of its error."""
    return "size mismatch" in str(error)


def gguf_metadata(path: str, arrays: tuple[str, ...] = ()) -> tuple[dict[str, Any], Any]:
    """Return the metadata of a GGUF file, with only those lists that are named in `arrays`, and its tensors' names.

    transformers: the reader behind ``from_pretrained(gguf_file=...)``.
    """
    from transformers.integrations.gguf import reader

    return reader.read_gguf_metadata(path, arrays)


def gguf_header(path: str) -> Any:
    """Return the places and the dtype of the tensors in a GGUF file; raise ValueError for types that only gguf knows.

    transformers: the reader behind ``from_pretrained(gguf_file=...)``.
    """
    from transformers.integrations.gguf import reader

    return reader.GgufHeader.from_file(path)


def gguf_text_splits() -> Container[str] | None:
    """Return the names in GGUF files of the text splits that transformers knows; None before 5.24, without a list."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return None
    return GGUF_PRE_TOKENIZER_SPLITS


def missing_reporters(names: list[str]) -> list[str]:
    """Return those of the reporters in `report_to` that are not installed; raise ValueError for an unknown one.

    transformers: the functions behind ``report_to="all"`` and every other value, which are not documented.
    """
    from transformers.integrations import integration_utils

    integration_utils.get_reporting_integration_callbacks(names)
    available = integration_utils.get_available_reporting_integrations()
    return [name for name in names if name not in available]


def warn_after_loading(trainer: Any, result: Any) -> None:
    """Let a trainer warn of missing weights. transformers: `Trainer._issue_warnings_after_load`."""
    trainer._issue_warnings_after_load(result)


def load_best_model(trainer: Any) -> None:
    """Load the weights of a trainer's best checkpoint. transformers: `Trainer._load_best_model`."""
    trainer._load_best_model()


def unlogged_loss(trainer: Any) -> tuple[float, int]:
    """Return the sum of this process's training losses since the last log, and the step of that log.

    transformers: `Trainer._tr_loss` and `Trainer._globalstep_last_logged`, which its checkpoints leave out.
    """
    return trainer._tr_loss.item(), trainer._globalstep_last_logged


def restore_unlogged_loss(trainer: Any, loss: float, logged: int) -> None:
    """Let the next log begin where that of another process would have begun; call it when the training has begun.

    transformers: the same attributes, and `Trainer._total_loss_scalar`, the sum of the losses of this training alone,
    to which `_tr_loss` will be added.
    """
    trainer._tr_loss.fill_(loss)
    trainer._globalstep_last_logged = logged
    trainer._total_loss_scalar -= loss


def is_lost_process(error: Exception) -> bool:
    """Whether an exchange between processes failed because another one has ended.

    PyTorch: the error of a closed connection, which its reference does not name, and the text of gloo's own error. The
    errors of other backends have one type for every fault, such as missing memory, so they are not recognised.
    """
    return isinstance(error, getattr(torch.distributed, "DistNetworkError", ())) or "/gloo/" in str(error)


# PEFT, TRL, datasets and bitsandbytes

ADAPTERS_OFF = "_disable_adapters"
"""The attribute of PEFT's layers that says whether their adapters are off.

This and the next two names appear only in messages."""

ADAPTERS_MERGED = "merged_adapters"
"""The attribute of PEFT's layers that lists the adapters merged into the weight."""

ADAPTERS_ACTIVE = "_active_adapter"
"""The attribute of PEFT's layers that lists the active adapters."""


def is_hook_of_peft(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one of PEFT's, which pass information about the batch to its layers during a forward pass.

    PEFT registers such hooks before the forward pass and removes them after it, and has no way to list them.
    """
    function = hook.func if isinstance(hook, partial) else hook
    return str(getattr(function, "__module__", "")).partition(".")[0] == "peft"


TRL_MAKES_REFERENCES = "create_model_from_path"
"""The function of `trl.trainer.utils` by which trainers create a reference model, from the name found by the next."""

TRL_NAMES_MODELS = "get_config_model_id"
"""The function of `trl.trainer.utils` that returns the name of a model, given its configuration."""


def fingerprint_of(dataset: Any) -> str:
    """Return the fingerprint of a data set's content. datasets: `_fingerprint`."""
    return dataset._fingerprint


def keep_gradients_of_nf4(layer: Any) -> None:
    """Keep the weight of a bitsandbytes `Linear4bit` in the layout that supports gradients, in place.

    bitsandbytes: on CPUs with AVX512-BF16 it repacks the weight of a layer that is evaluated outside of training, for a
    kernel without a gradient; `state_dict` unpacks it.
    """
    layer.support_avx512bf16_for_cpu = False
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        layer.state_dict()
