"""Activation checkpointing with the stored inputs in host memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.activations.checkpoint import CheckpointedPass
from revformers.engine.forward_pass import BeginPass
from revformers.engine.ticket import InputSource


@dataclass(frozen=True)
class Offload(ActivationPolicy):
    """Keep p[l] of every step in host memory; on a CPU this is the same as `Checkpoint`."""

    name = "offload"
    keeps = "the input of every step, in host memory"
    on_host = True

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass that copies the inputs to the host."""
        return lambda states, _: OffloadedPass(states)


class OffloadedPass(CheckpointedPass):
    """One forward pass that keeps the input of every step in host memory."""

    def _keep(self, hidden: Tensor) -> InputSource:
        if hidden.device.type in ("cpu", "meta"):
            return super()._keep(hidden)
        device, pinned = hidden.device, hidden.is_cuda
        on_host = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=pinned)
        on_host.copy_(hidden)
        return lambda: on_host.to(device, non_blocking=pinned)
