"""Warnings and errors for torch.compile, torch.export and torch.jit.trace, which cannot look into a recurrence."""

import warnings

import torch
from torch import nn

from revformers.errors import NotReversibleError

NEVER_COMPILED = (
    "a reversible decoder is not compiled as a whole, since its states are exact integers, checked as they change; "
    "call revformers.compile_layers(model), which compiles every layer, and leave fullgraph out; to export, take the "
    "ordinary network, revformers.make_residual(model)"
)
"""Part of the error that torch.compile(fullgraph=True) raises."""


def refuse_export(module: nn.Module) -> None:
    """Raise NotReversibleError where torch.export or torch.jit.trace runs the forward of a reversible decoder."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        exporter = "torch.export" if torch.compiler.is_exporting() else "torch.jit.trace"
        raise NotReversibleError(
            f"{exporter} cannot export {type(module).__name__} with reversible dynamics, whose states are exact "
            f"integers, checked as they change; export the ordinary network (revformers.make_residual(model))."
        )


def warn_of_uncompiled_layers() -> None:
    """Say that torch.compile around a reversible model leaves its layers alone."""
    warnings.warn(
        "torch.compile, also that of a trainer with torch_compile=True, compiles what surrounds the layers of a "
        "reversible model, and leaves the layers as they are; revformers.compile_layers(model) compiles them.",
        stacklevel=6,
    )
