"""Activation checkpointing whose stored inputs lie in host memory."""

import torch
from torch import Tensor

from revformers.activations.checkpoint import Checkpoint
from revformers.engine.ticket import InputSource


class Offload(Checkpoint):
    """Keep p[l] of every step in host memory; on a CPU this is `Checkpoint`, as there is nowhere else to go."""

    def _keep(self, hidden: Tensor) -> InputSource:
        if hidden.device.type in ("cpu", "meta"):
            return super()._keep(hidden)
        device, pinned = hidden.device, hidden.is_cuda
        on_host = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=pinned)
        on_host.copy_(hidden)
        return lambda: on_host.to(device, non_blocking=pinned)
