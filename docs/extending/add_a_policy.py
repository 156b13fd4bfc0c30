"""An activation policy of your own: keep the inputs of layers in files."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

import revformers as rf
from revformers.activations import register
from revformers.dynamics import Coefficients
from revformers.engine.field import Field
from revformers.engine.forward_pass import BeginPass, ForwardPass
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape


@dataclass(frozen=True)
class CheckpointInFiles(rf.ActivationPolicy):
    """Keep p[l] of every step in a temporary file, and evaluate f_l again.

    Attributes:
        directory: where the files are made; None for the system's directory.

    """

    directory: str | None = None

    name = "checkpoint_in_files"
    keeps = "the input of every step, in files"

    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass."""
        return lambda states, steps: PassInFiles(states, self.directory)

    @classmethod
    def from_text(cls, options: str) -> Self:
        """Read the directory that follows the name and a colon, if any."""
        return cls(options or None)

    def __str__(self) -> str:
        """Return the policy as text, e.g. "checkpoint_in_files:/scratch"."""
        return self.name if self.directory is None else f"{self.name}:{self.directory}"


class PassInFiles(ForwardPass):
    """One forward pass; it lives until its backward pass is done."""

    def __init__(self, states: StatePair, directory: str | None) -> None:
        super().__init__(states)
        self._directory = directory
        self._tape = Tape.without_states(states.current.device)

    def evaluate(self, name: str, coefficients: Coefficients, field: Field, hidden: Tensor) -> Tensor:
        """Return f_l(p[l]), (batch, tokens, width), in the autograd graph."""
        return self._tape.evaluate(name, coefficients, field, hidden, keep=self._keep)

    def _keep(self, hidden: Tensor) -> Callable[[], Tensor]:
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - it lives as long as `load`
        torch.save(hidden, file)

        def load() -> Tensor:
            file.seek(0)
            return torch.load(file)

        return load


register(CheckpointInFiles)
