"""How a decoder layer splits into its two branches, attention and MLP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Branch:
    """One branch of a layer: x -> scale * after_n(...after_1(module(before(x)))), by the layer's attribute names.

    Attributes:
        module: the attention or the MLP (its first part, where it lies flat in the layer as in OPT); where it returns
            a tuple, the first item counts.
        before: the norm in front of it, if any.
        after: what follows it, in order: norms (sandwich norm), dropout, the rest of a flat MLP. An attribute that
            is a number is the probability of a dropout.
        beside: another module with the same input, whose output is added (shared experts of Granite), if any; the
            attribute may be None.
        scale: the attribute with a number that multiplies the branch (Granite), if any.
        renamed: the layer's inputs that the module takes under another name.

    """

    module: str
    before: str | None = None
    after: tuple[str, ...] = ()
    beside: str | None = None
    scale: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return what the branch of `layer` adds to `hidden`, (batch, tokens, width); `inputs` go to the module."""
        shape = hidden.shape
        if self.before:
            hidden = getattr(layer, self.before)(hidden)
        inputs = {self.renamed.get(name, name): value for name, value in inputs.items()}
        output = getattr(layer, self.module)(hidden, **inputs)
        update: Tensor = output[0] if isinstance(output, tuple) else output
        beside = getattr(layer, self.beside) if self.beside else None
        if beside is not None:
            update = update + beside(hidden)
        for name in self.after:
            following = attrgetter(name)(layer)
            if isinstance(following, nn.Module):
                update = following(update)
            else:
                update = functional.dropout(update, following, layer.training)
        # The experts of Llama 4 return all tokens in one row.
        update = update.view(shape)
        return update * getattr(layer, self.scale) if self.scale else update


@dataclass(frozen=True)
class BlockLayout:
    """The two branches of a layer and how they are joined.

    Attributes:
        attention: the branch that reads the stream first; it gets the layer's inputs.
        mlp: the branch that reads the stream with attention's update added, or beside it where `parallel`.
        parallel: whether both branches read the same state (GPT-J, Cohere).
        unless: an input that must be absent or None, as the layout does not cover it (GPT-2's cross-attention).
        values_returned: how many values the layer's forward returns, the hidden state and others (attention weights),
            in the versions of transformers where it is not annotated to return one tensor.
        when: values that attributes of the layer must have, e.g. ``{"use_parallel_residual": True}``, where a class
            of layers has several layouts.

    """

    attention: Branch
    mlp: Branch
    parallel: bool = False
    unless: str | None = None
    values_returned: int = 1
    when: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, layer: nn.Module) -> bool:
        """Whether `layer`, of a class that the layout is for, is built in the way that the layout describes."""
        return all(attrgetter(name)(layer) == value for name, value in self.when.items())

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
        return attention + self.mlp_update(layer, hidden if self.parallel else hidden + attention)
