"""Whether an evaluation may end as soon as all is saved again, as that of PyTorch's checkpointing does.

That spares the last product of a layer. But what a module does at its end is not done then: a weight that was rounded
for its forward stays rounded, one that was brought to the device stays there. So an evaluation ends early only in code
that is known to leave nothing to do: modules of PyTorch, transformers and PEFT, with the forward that they were written
with and no hooks behind it.
"""

from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

_KNOWN = frozenset({"torch", "transformers", "peft", "revformers"})


def may_end_early(field: Any) -> bool:
    """Whether a field, or what it is made of, leaves nothing to do when its evaluation is interrupted."""
    if isinstance(field, nn.Module):
        of_all_modules = torch.nn.modules.module._global_forward_hooks.values()  # such as those that count operations
        return all(map(_is_known, of_all_modules)) and all(map(_is_plain, field.modules()))
    if isinstance(field, partial):
        return all(map(may_end_early, (field.func, *field.args, *field.keywords.values())))
    if isinstance(field, dict):
        return all(map(may_end_early, field.values()))
    if isinstance(field, (list, tuple)):
        return all(map(may_end_early, field))
    if is_dataclass(field):
        return all(may_end_early(getattr(field, attribute.name)) for attribute in dataclass_fields(field))
    if not callable(field):
        return True
    return _is_known(field) and all(may_end_early(getattr(field, name, None)) for name in ("__wrapped__", "__self__"))


def _is_plain(module: nn.Module) -> bool:
    kind, own_forward = type(module), vars(module).get("forward")
    return (
        kind.__module__.partition(".")[0] in _KNOWN
        and _is_known(kind.forward)
        and not module._forward_hooks
        and (own_forward is None or _is_known(own_forward))
    )


def _is_known(function: Any) -> bool:
    """Whether a function, or an object that is called, is of a known library: by its code, and not by what it wraps."""
    function = getattr(function, "__func__", function)
    home = getattr(function, "__globals__", {}).get("__name__", type(function).__module__)
    return str(home).partition(".")[0] in _KNOWN
