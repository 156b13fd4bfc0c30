"""Activation policies: what the backward pass finds, and what it computes again.

A new one is one new file and one line in `ACTIVATIONS`.
"""

from revformers.activations.base import ActivationPolicy
from revformers.activations.checkpoint import Checkpoint
from revformers.activations.offload import Offload
from revformers.activations.rebuild import Tape
from revformers.activations.store import Store

ACTIVATIONS: dict[str, type[ActivationPolicy]] = {
    "store": Store,
    "checkpoint": Checkpoint,
    "offload": Offload,
    "rebuild": Tape,
}

__all__ = ["ACTIVATIONS", "ActivationPolicy", "Checkpoint", "Offload", "Store", "Tape"]
