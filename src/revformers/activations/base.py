"""The interface of activation policies."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from revformers.dynamics.base import Dynamics
from revformers.engine.forward_pass import BeginPass


class ActivationPolicy(ABC):
    """Decides which activations the backward pass finds stored, and how it computes the others again.

    A policy is immutable and can serve many models. The network does not depend on it: under every policy the forward
    pass returns the same numbers and the backward pass the same gradients, to the bit.

    Attributes:
        name: the name of the policy in recipes, on the command line and in saved models.
        keeps: what a forward pass keeps for its backward pass, in words.
        on_host: whether it keeps that in host memory.
        observes: whether it watches the first pass of a batch shape to decide, layer by layer, what later passes keep.

    """

    name: ClassVar[str]
    keeps: ClassVar[str]
    on_host: ClassVar[bool] = False
    observes: ClassVar[bool] = False

    @property
    def needs_inverse(self) -> bool:
        """Whether the backward pass inverts the recurrence, which requires dynamics with an inverse."""
        return False

    @property
    def evaluates_again(self) -> bool:
        """Whether the backward pass evaluates layers a second time."""
        return True

    @abstractmethod
    def bind(self, steps_per_layer: int) -> BeginPass:
        """Return a function that begins a forward pass.

        It is called once for each model, and again if the model's layers are compiled or step in another way. So the
        function can remember passes, but not the coefficients of their steps, which training may change.

        Args:
            steps_per_layer: 1, or 2 if layers step by branch.

        """

    @classmethod
    def from_text(cls, options: str) -> Self:
        """Read the options that follow the name and a colon in `str(policy)`; most policies have none.

        Raises:
            ValueError: if the policy does not have these options.

        """
        if options:
            raise ValueError(f'The activation policy "{cls.name}" has no options, but was given {options!r}.')
        return cls()

    def __str__(self) -> str:
        """Return the policy as text, as in recipes, commands and saved models; `parse_policy` reads it."""
        return self.name

    def check(self, dynamics: Dynamics) -> None:
        """Raise ValueError if the policy needs an inverse and the dynamics have none."""
        if self.needs_inverse and not dynamics.reversible:
            raise ValueError(
                f"{type(dynamics).__name__} has no inverse to rebuild activations with; use revformers.Store(), "
                f'Checkpoint(), Offload() or Budget("20GiB", "checkpoint"), or reversible dynamics.'
            )
