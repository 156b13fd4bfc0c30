"""Activation checkpointing with the stored inputs in host memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from revformers.activations.base import ActivationPolicy
from revformers.activations.checkpoint import CheckpointedPass
from revformers.activations.overlapped import MetaCopies, OverlappedInputs, StreamCopies
from revformers.engine.forward_pass import BeginPass, ForwardPass
from revformers.engine.states import StatePair
from revformers.engine.ticket import InputSource


@dataclass(frozen=True)
class Offload(ActivationPolicy):
    """Keep p[l] of every step in host memory; on a CPU this is the same as `Checkpoint`.

    On CUDA the copies run beside the computation; see `activations.overlapped`. On other devices they are serial.
    """

    name = "offload"
    keeps = "the input of every step, in host memory"
    on_host = True

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass that copies the inputs to the host."""
        # One for each model and stream that computes, because the memory of a copy is used again in the order of one.
        streams: dict[torch.cuda.Stream, StreamCopies] = {}

        def begin(states: StatePair, _: object) -> ForwardPass:
            device = states.current.device
            if device.type == "meta":
                return OffloadedPass(states, OverlappedInputs(MetaCopies()))
            if device.type != "cuda":
                return OffloadedPass(states)
            computing = torch.cuda.current_stream(device)
            if computing not in streams:
                streams[computing] = StreamCopies(device)
            return OffloadedPass(states, OverlappedInputs(streams[computing]))

        return begin


class OffloadedPass(CheckpointedPass):
    """One forward pass that keeps the input of every step in host memory.

    Args:
        states: the pair of fixed-point states.
        inputs: copies the inputs beside the computation; None to copy them in turn with it.

    """

    def __init__(self, states: StatePair, inputs: OverlappedInputs | None = None) -> None:
        super().__init__(states)
        self._inputs = inputs

    def _keep(self, hidden: Tensor) -> InputSource:
        if self._inputs is not None:
            return self._inputs.keep(hidden)
        if hidden.device.type == "cpu":
            return super()._keep(hidden)
        device, on_host = hidden.device, hidden.cpu()
        return lambda: on_host.to(device)
