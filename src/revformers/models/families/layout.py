"""The layout of a decoder layer: its two branches, attention and MLP, and how they are joined."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revformers.errors import NotReversibleError, reason_with_type
from revformers.private_api import returns_one_tensor


@dataclass(frozen=True)
class ModuleCall:
    """The arguments with which a layer calls the module of a branch.

    Attributes:
        hidden: the keyword of the hidden state; None if it is the first positional argument.
        inputs: all other arguments, by name.

    """

    hidden: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, module: nn.Module, hidden: Tensor) -> Any:
        """Call `module` with `hidden`, and return what it returns."""
        if self.hidden is None:
            return module(hidden, **self.inputs)
        return module(**{self.hidden: hidden}, **self.inputs)


_ONLY_HIDDEN = ModuleCall()
"""How MLPs are called. One object for all calls, because torch.compile of PyTorch 2.11 cannot always make new ones."""


@dataclass(frozen=True)
class Branch:
    """One branch of a layer: x -> scale * after_n(...after_1(module(before(x)))), by the layer's attribute names.

    Attributes:
        module: the attention or the MLP (its first part if the MLP's parts are attributes of the layer, as in OPT). If
            it returns a tuple, the first item is its output.
        before: the norm before it, if any.
        after: the modules after it, in order: norms (sandwich norm), dropout, the remaining parts of the MLP. An
            attribute that is a number is a dropout probability.
        beside: another module with the same input, whose output is added (shared experts of Granite), if any; the
            attribute may be None.
        scale: the attribute with a number that multiplies the branch (Granite), if any.

    """

    module: str
    before: str | None = None
    after: tuple[str, ...] = ()
    beside: str | None = None
    scale: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):
            raise TypeError(f"Branch takes the name of a module of the layer, not {self.module!r}.")
        if isinstance(self.after, str):
            raise TypeError(f'Branch takes a tuple of names as after, such as ("{self.after}",), not a string.')

    def __call__(self, layer: nn.Module, hidden: Tensor, call: ModuleCall) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the branch's update of `hidden`, (batch, tokens, width), and the further outputs of its module."""
        return self.after_norm(layer, self.norm(layer, hidden), call)

    def check(self, layer: nn.Module) -> None:
        """Raise NotReversibleError if the branch names what `layer` does not have, or something of another kind."""
        _require(layer, self.module, "a module", nn.Module)
        _require(layer, self.before, "a module", nn.Module)
        _require(layer, self.beside, "a module", nn.Module | None)
        _require(layer, self.scale, "a number", Real | Tensor)
        for name in self.after:
            _require(layer, name, "a module or a dropout probability", nn.Module | Real, find=_inner_attribute)

    def norm(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return the input of the branch's module, (batch, tokens, width)."""
        return getattr(layer, self.before)(hidden) if self.before else hidden

    def after_norm(self, layer: nn.Module, hidden: Tensor, call: ModuleCall) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the result of `__call__`, given the result of `norm`."""
        shape = hidden.shape
        output = call(getattr(layer, self.module), hidden)
        update, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
        beside = getattr(layer, self.beside) if self.beside else None
        if beside is not None:
            update = update + beside(hidden)
        for name in self.after:
            following = _inner_attribute(layer, name)
            if isinstance(following, nn.Module):
                update = following(update)
            else:
                update = functional.dropout(update, following, layer.training)
        # The experts of Llama 4 flatten the batch dimension.
        update = update.view(shape)
        return update * getattr(layer, self.scale) if self.scale else update, others


@dataclass(frozen=True)
class BlockLayout:
    """The two branches of a layer and how they are joined.

    Attributes:
        attention: the first branch; it gets the layer's inputs.
        mlp: the second branch, which reads the state with attention's update added, or without it if `parallel`.
        parallel: whether both branches read the same state (GPT-J, Cohere).
        unless: an input that must be absent or None, because the layout does not cover it (GPT-2's cross-attention).
        values_returned: number of values that the layer's forward returns: the hidden state and further outputs of its
            attention (weights). Ignored if transformers annotates the forward to return one tensor.
        when: values that attributes of the layer must have, e.g. ``{"use_parallel_residual": True}``, if a class of
            layers has several layouts.

    """

    attention: Branch
    mlp: Branch
    parallel: bool = False
    unless: str | None = None
    values_returned: int = 1
    when: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for branch in (self.attention, self.mlp):
            if not isinstance(branch, Branch):
                raise TypeError(f"BlockLayout takes a revformers.Branch as attention and as mlp, not {branch!r}.")
        if not isinstance(self.when, Mapping):
            raise TypeError(
                f"BlockLayout takes a dictionary of attributes and their values as when, not {self.when!r}."
            )

    def check(self, layer: nn.Module) -> None:
        """Raise NotReversibleError if the layout names what `layer` does not have, or something of another kind."""
        self.attention.check(layer)
        self.mlp.check(layer)

    def fits(self, layer: nn.Module) -> bool:
        """Whether the attributes of `layer` have the values of `when`.

        Raises:
            NotReversibleError: if it does not have one of them.

        """
        for name in self.when:
            _require(layer, name, "an attribute", object, find=_inner_attribute)
        return all(_inner_attribute(layer, name) == value for name, value in self.when.items())

    def attention_call(self, layer: nn.Module, inputs: Mapping[str, Any]) -> ModuleCall:
        """Return the arguments with which `layer` calls its attention when its other `inputs` are as given.

        They are found by running the layer's own forward, on an empty tensor and with all modules replaced, up to that
        call.

        Raises:
            NotReversibleError: if the layer does not call its attention.
            ValueError: if the layout does not cover the inputs.

        """
        if self.unless and inputs.get(self.unless) is not None:
            raise ValueError(f"{type(layer).__name__} with {self.unless} is not covered by its branch-level fields.")
        hidden = torch.empty(0, 0, 0)
        try:
            type(layer).forward(_UntilModule(layer, self.attention.module), hidden, **inputs)
        except _Called as called:
            names = [name for name, value in called.keywords.items() if value is hidden]
            others = {name: value for name, value in called.keywords.items() if value is not hidden}
            return ModuleCall(names[0] if names else None, others)
        except Exception as error:
            raise NotReversibleError(
                f"{type(layer).__name__} does not get to its {self.attention.module} without the results of other "
                f"modules ({reason_with_type(error)}); the first branch of its layout must be the module that it "
                f"calls first."
            ) from error
        raise NotReversibleError(f"{type(layer).__name__} does not call its {self.attention.module}.")

    def others_returned(self, layer: nn.Module) -> int:
        """Return how many values the layer's forward returns after its hidden state."""
        # Newer versions of transformers return the hidden state alone from more layers, and annotate them accordingly.
        alone = self.values_returned == 1 or returns_one_tensor(type(layer).forward)
        return 0 if alone else self.values_returned - 1

    def attention_update(self, layer: nn.Module, hidden: Tensor, call: ModuleCall) -> tuple[Tensor, tuple[Any, ...]]:
        """Return attention's update of `hidden`, (batch, tokens, width), and its further outputs."""
        return self.attention(layer, hidden, call)

    def mlp_update(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return the MLP's update of `hidden`, (batch, tokens, width)."""
        return self.mlp(layer, hidden, _ONLY_HIDDEN)[0]

    def block_update(self, layer: nn.Module, hidden: Tensor, call: ModuleCall) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the whole layer's update of `hidden`, and the further outputs of its attention.

        The update is not computed as the difference of the layer's output and `hidden`, so it is not rounded twice.
        """
        if self.parallel and self.attention.before == self.mlp.before:
            # As in the layer's own forward, the shared norm is evaluated once.
            hidden = self.attention.norm(layer, hidden)
            attention, others = self.attention.after_norm(layer, hidden, call)
            return attention + self.mlp.after_norm(layer, hidden, _ONLY_HIDDEN)[0], others
        attention, others = self.attention_update(layer, hidden, call)
        return attention + self.mlp_update(layer, hidden if self.parallel else hidden + attention), others


def _inner_attribute(layer: nn.Module, name: str) -> Any:
    """Return an attribute of a layer, or one inside of it, e.g. "config.attention_dropout"."""
    return attrgetter(name)(layer)


def _require(
    layer: nn.Module, name: str | None, what: str, kind: Any, find: Callable[[nn.Module, str], Any] = getattr
) -> None:
    """Raise NotReversibleError unless `layer` has the attribute `name` and it is of `kind`, in words `what`."""
    if name is None:
        return
    try:
        value = find(layer, name)
    except AttributeError:
        parts = ", ".join(part for part, _ in layer.named_children())
        raise NotReversibleError(
            f"The layout of {type(layer).__name__} names {name!r}, which the layer does not have; its modules are "
            f"{parts}."
        ) from None
    if not isinstance(value, kind):
        raise NotReversibleError(
            f"The layout of {type(layer).__name__} names {name!r} as {what}, but it is of the type "
            f"{type(value).__name__}."
        )


class _Called(Exception):
    """Ends a forward at the call of the attention, and carries the arguments of the call."""

    def __init__(self, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.keywords = keywords


class _UntilModule:
    """Stands in for a layer in its own forward: the call of one module ends it; other modules return their input."""

    forward = None
    """Transformers compares this attribute to decide whether to apply gradient checkpointing; here it must not."""

    def __init__(self, layer: nn.Module, module: str) -> None:
        self._layer = layer
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._layer, name)
        if name == self._module:
            return _end
        return _unchanged if isinstance(value, nn.Module) else value


def _end(*_: Any, **keywords: Any) -> None:
    raise _Called(keywords)


def _unchanged(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden
