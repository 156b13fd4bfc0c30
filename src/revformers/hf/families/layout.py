"""How a decoder layer splits into its two branches, attention and MLP."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Branch:
    """One branch of a layer: x -> scale * after_n(...after_1(module(before(x)))), by the layer's attribute names.

    Attributes:
        module: the attention or the MLP; where it returns a tuple, the first item counts.
        before: the norm in front of it, if any.
        after: modules behind it, in order: norms (sandwich norm), dropout.
        scale: the attribute with a number that multiplies the branch (Granite), if any.

    """

    module: str
    before: str | None = None
    after: tuple[str, ...] = ()
    scale: str | None = None

    def __call__(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what the branch of `layer` adds to `hidden`, (batch, tokens, width); `inputs` go to the module."""
        if self.before:
            hidden = getattr(layer, self.before)(hidden)
        output = attrgetter(self.module)(layer)(hidden, **inputs)
        update: Tensor = output[0] if isinstance(output, tuple) else output
        for name in self.after:
            update = getattr(layer, name)(update)
        return update * getattr(layer, self.scale) if self.scale else update


@dataclass(frozen=True)
class BlockLayout:
    """The two branches of a layer and how they are joined.

    Attributes:
        attention: the branch that reads the stream first; it gets the layer's inputs.
        mlp: the branch that reads the stream with attention's update added, or beside it where `parallel`.
        parallel: True where both branches read the same state (GPT-J, Cohere); the name of the layer's attribute that
            tells, where it depends on the model (GPT-NeoX).
        unless: an input that must be absent or None, as the layout does not cover it (GPT-2's cross-attention).

    """

    attention: Branch
    mlp: Branch
    parallel: bool | str = False
    unless: str | None = None

    def attention_update(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what attention adds to `hidden`, (batch, tokens, width)."""
        if self.unless and inputs.get(self.unless) is not None:
            raise ValueError(f"{type(layer).__name__} with {self.unless} is not covered by its branch-level fields.")
        return self.attention(layer, hidden, inputs)

    def mlp_update(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the MLP adds to `hidden`, (batch, tokens, width)."""
        return self.mlp(layer, hidden, {})

    def block_update(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what the whole layer adds to `hidden`, without ever subtracting it from the layer's output."""
        attention = self.attention_update(layer, hidden, inputs)
        parallel = getattr(layer, self.parallel) if isinstance(self.parallel, str) else self.parallel
        return attention + self.mlp_update(layer, hidden if parallel else hidden + attention)
