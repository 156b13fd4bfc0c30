"""Replacement of a module's forward on the object, which does not change its class, its name and its weights."""

import inspect
from functools import partial

from torch import nn


class StandIn(partial):
    """A function that replaces the forward of a module, which is its first argument.

    It is pickled and copied with the module. It has the signature of its class's forward, which trainers inspect.
    """

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(type(self.args[0]).forward)
        return own.replace(parameters=list(own.parameters.values())[1:])


def refuse_replaced(module: nn.Module, remedy: str) -> None:
    """Raise ValueError, with the remedy in its message, if another library has replaced the forward of a module."""
    if "forward" in vars(module):
        raise ValueError(f"The forward of {type(module).__name__} was replaced by another library; {remedy}")
