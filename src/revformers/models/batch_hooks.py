"""Keep what PEFT tells its adapters about one batch for every evaluation of a layer in that batch's pass.

Which row uses which adapter (`adapter_names=`), and where an activated LoRA (aLoRA) begins in each row, PEFT hands to
its modules by forward pre-hooks, which it removes when the forward pass is over. A layer that the backward pass
evaluates again needs them again.
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
"""Modules, and the forward pre-hooks with keywords that PEFT gave each of them for one forward pass."""


def has_batch_hooks(model: nn.Module) -> bool:
    """Whether PEFT has set hooks for the forward pass that runs; which modules get them depends on the method."""
    return "peft" in sys.modules and bool(batch_hooks(model))


def batch_hooks(*parts: nn.Module) -> BatchHooks:
    """Return the hooks that PEFT gave the modules of `parts` for the forward pass that runs."""
    modules = (module for part in parts for module in part.modules())
    hooks = ((module, hook) for module in modules for hook in forward_pre_hooks(module).values())
    return [(module, hook) for module, hook in hooks if is_hook_of_peft(hook)]


def with_batch_hooks(field: Field, hooks: BatchHooks) -> Field:
    """Return `field` such that `hooks` are in place in all of its evaluations."""
    return partial(_evaluate, field, hooks)


def _evaluate(field: Field, hooks: BatchHooks, hidden: Tensor) -> Tensor:
    with _in_place(hooks):
        return field(hidden)


@contextlib.contextmanager
def _in_place(hooks: BatchHooks) -> Iterator[None]:
    """Register the hooks that are no longer there for the length of the block."""
    with contextlib.ExitStack() as stack:
        for module, hook in hooks:
            if not any(present is hook for present in forward_pre_hooks(module).values()):
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
