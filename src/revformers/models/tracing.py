"""Warnings and errors for torch.compile, torch.export and torch.jit.trace, which cannot trace the recurrence."""

import warnings

import torch
from torch import nn

from revformers.errors import NotReversibleError

NEVER_COMPILED = (
    "a reversible decoder is not compiled as a whole, because its states are exact integers that are checked as they "
    "change; call revformers.compile_layers(model), which compiles every layer, and leave fullgraph out; to export, "
    "use the ordinary network, revformers.make_residual(model)"
)
"""The reason in the error that torch.compile(fullgraph=True) raises."""


def refuse_export(module: nn.Module) -> None:
    """Raise NotReversibleError if torch.export or torch.jit.trace runs the forward of a reversible decoder."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        exporter = "torch.export" if torch.compiler.is_exporting() else "torch.jit.trace"
        raise NotReversibleError(
            f"{exporter} cannot export {type(module).__name__} with reversible dynamics, whose states are exact "
            f"integers that are checked as they change; export the ordinary network (revformers.make_residual(model))."
        )


def warn_of_uncompiled_layers() -> None:
    """Warn that torch.compile around a reversible model does not compile its layers."""
    warnings.warn(
        "torch.compile, also that of a trainer with torch_compile=True, compiles what surrounds the layers of a "
        "reversible model, but not the layers; revformers.compile_layers(model) compiles them.",
        stacklevel=6,
    )
