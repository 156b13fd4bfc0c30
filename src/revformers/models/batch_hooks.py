"""PEFT's hooks for one batch, kept so that the backward pass can evaluate a layer with them again.

PEFT passes per-batch information to its modules by forward pre-hooks: which row uses which adapter (`adapter_names=`),
and where an activated LoRA (aLoRA) begins in each row. It removes the hooks at the end of the forward pass.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from revformers.engine.field import Field
from revformers.private_api import forward_pre_hooks, is_hook_of_peft

BatchHooks = Sequence[tuple[nn.Module, Callable[..., Any]]]
"""Pairs of a module and a forward pre-hook (with keywords) that PEFT registered on it for one forward pass."""


def has_batch_hooks(model: nn.Module) -> bool:
    """Whether PEFT has registered hooks for the current forward pass, on any module of `model`."""
    return "peft" in sys.modules and bool(batch_hooks(model))


def batch_hooks(*parts: nn.Module) -> BatchHooks:
    """Return the hooks that PEFT has registered on the modules of `parts` for the current forward pass."""
    modules = (module for part in parts for module in part.modules())
    hooks = ((module, hook) for module in modules for hook in forward_pre_hooks(module).values())
    return [(module, hook) for module, hook in hooks if is_hook_of_peft(hook)]


def with_batch_hooks(field: Field, hooks: BatchHooks) -> Field:
    """Return `field` with `hooks` registered during each of its evaluations."""
    return partial(_evaluate, field, hooks)


def _evaluate(field: Field, hooks: BatchHooks, hidden: Tensor) -> Tensor:
    with _in_place(hooks):
        return field(hidden)


@contextlib.contextmanager
def _in_place(hooks: BatchHooks) -> Iterator[None]:
    """Register the hooks that are missing, for the duration of the block."""
    with contextlib.ExitStack() as stack:
        for module, hook in hooks:
            if not any(present is hook for present in forward_pre_hooks(module).values()):
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
