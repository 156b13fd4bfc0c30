"""The forward pass of a reversible model: the decoder's own loop over its layers, with the recurrence inside it.

Nothing of the model is wrapped or rewritten. The `forward` of the decoder and of each layer is replaced on the
object: the decoder's opens a `Pass`, and each layer's takes its steps in it. So module names, state-dict keys, hooks
around the layers, masks, position embeddings and caches stay what they were.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revformers.activations import PolicyFactory, policy_factory
from revformers.activations.budget import BudgetReport
from revformers.dynamics.base import Dynamics
from revformers.errors import NotReversibleError
from revformers.field import Field
from revformers.hf.batch_hooks import batch_hooks, has_batch_hooks, with_batch_hooks
from revformers.hf.discovery import find_stack
from revformers.hf.families import find_layout
from revformers.hf.fields import (
    Evaluate,
    LayerCall,
    LayerReturn,
    NotKept,
    block_field,
    evaluate,
    holds_cache,
    layer_inputs,
    named_fields,
    ordinary_field,
    previous_fields,
)
from revformers.hf.provenance import Provenance
from revformers.stack import Trajectory


@dataclass
class ReversibleStack:
    """What makes a decoder reversible; kept on the decoder as `_reversible_stack`.

    Attributes:
        dynamics: the recurrence.
        activations: a name in `activations.ACTIVATIONS`, or what `str` gives of a `Budget`.
        number_of_layers: the depth of the decoder.
        provenance: where the model came from, where that is known.
        predictor_features: what the layers' update predictors read; nothing without them.
        ordinary: whether the decoder runs as the ordinary network for now; see `revformers.ordinary`.
        budget_report: what the last forward pass under a `Budget` chose.
        evaluate: what the layers' computations go through; see `revformers.compile_layers`.

    """

    dynamics: Dynamics
    activations: str
    number_of_layers: int
    provenance: Provenance | None = None
    predictor_features: tuple[str, ...] = ()
    ordinary: bool = False
    budget_report: BudgetReport | None = None
    evaluate: Evaluate = evaluate

    @property
    def policy(self) -> PolicyFactory:
        """What makes the activation policy of a forward pass, as `activations` says."""
        return policy_factory(self.activations, self.dynamics, self.number_of_layers)

    @property
    def evaluates_attention_twice(self) -> bool:
        """Whether a step evaluates the attention of the layer before, which key-value caches have no place for."""
        second = self.number_of_layers > 1 and self.dynamics.previous_update(1) != 0
        return second or "previous_update" in self.predictor_features

    @property
    def evaluates_mlps_twice(self) -> bool:
        """Whether a step evaluates the MLP of the layer before, whose router would be counted twice."""
        return self.evaluates_attention_twice or "previous_mlp" in self.predictor_features


@dataclass
class LayerRole:
    """A layer's place in its reversible stack; kept on the layer as `_reversible_role`."""

    stack: ReversibleStack
    index: int


class Pass:
    """One forward pass through a decoder: the trajectory and how far it is."""

    def __init__(self, stack: ReversibleStack, decoder: nn.Module) -> None:
        self.stack = stack
        self._decoder = decoder
        self._next = 0
        self._before: LayerCall | None = None
        self._trajectory: Trajectory | None = None
        self._version = 0
        self._keeps_batch_hooks = _recomputes(stack) and has_batch_hooks(decoder)

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Take the steps of `layer` and return what its forward returns: p[l+1], or the readout after the last."""
        index = layer._reversible_role.index
        if index != self._next:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} called layer {index} where layer {self._next} was due; only decoders "
                f"that run every layer once and in order can be reversed."
            )
        if any(isinstance(value, NotKept) for value in inputs.values()):
            raise NotReversibleError(
                f"{type(self._decoder).__name__} passes more than the hidden state from layer to layer; only layers "
                f"that map one hidden state to one hidden state can be reversed."
            )
        _refuse_cache(self.stack, inputs)
        if self._trajectory is None:
            self._trajectory = Trajectory(self.stack.dynamics, self.stack.policy, hidden)
            hidden = self._trajectory.hidden
        else:
            self._refuse_change(hidden)
        returned = LayerReturn(keep=not _recomputes(self.stack))
        call = LayerCall(layer, index, inputs, self.stack.evaluate)
        before = self._before.layer if self._before else layer
        hooks = batch_hooks(before, layer) if self._keeps_batch_hooks else ()
        for name, field in named_fields(call, self._before, self.stack.dynamics, returned):
            if hooks:
                field = with_batch_hooks(field, hooks)
            hidden = self._trajectory.step(name, self.stack.dynamics.coefficients(index), field, hidden)
        self._before = call
        self._next += 1
        if self._next == self.stack.number_of_layers:
            self.stack.budget_report = self._trajectory.report or self.stack.budget_report
            return returned.of(self._trajectory.readout())
        self._version = _version(hidden)
        return returned.of(hidden)

    def finish(self) -> None:
        """Refuse a decoder that ran fewer layers than it has."""
        if self._next != self.stack.number_of_layers:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} ran {self._next} of its {self.stack.number_of_layers} layers; only "
                f"decoders that run every layer once and in order can be reversed."
            )

    def _refuse_change(self, hidden: Tensor) -> None:
        """Refuse a decoder that does something to the stream between two layers: the inverse would not know of it."""
        assert self._trajectory is not None
        expected = self._trajectory.hidden
        # Other objects with the same memory are fine: FSDP passes a layer's input through a node of its own.
        same = hidden is expected or (hidden.shape == expected.shape and hidden.data_ptr() == expected.data_ptr())
        if not same or _version(hidden) != self._version:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} changes the hidden state between layers {self._next - 1} and "
                f"{self._next}; only decoders that hand a layer's output to the next layer as it is can be reversed."
            )


_CURRENT_PASS: "ContextVar[Pass | _Visit | None]" = ContextVar("revformers_pass", default=None)


def decoder_forward(decoder: Any, *arguments: Any, **keywords: Any) -> Any:
    """Stand in for the forward of a reversible decoder."""
    stack: ReversibleStack = decoder._reversible_stack
    if stack.ordinary:
        return type(decoder).forward(decoder, *arguments, **keywords)
    arguments, keywords = _decide_cache(decoder, arguments, keywords)
    if keywords.get("output_router_logits") and stack.evaluates_mlps_twice:
        raise ValueError(
            "output_router_logits cannot be used with a model that evaluates MLPs twice a step: its auxiliary loss "
            'would count routers twice. Convert with the predictor "update", or switch output_router_logits off.'
        )
    current = Pass(stack, decoder)
    token = _CURRENT_PASS.set(current)
    try:
        output = type(decoder).forward(decoder, *arguments, **keywords)
    finally:
        _CURRENT_PASS.reset(token)
    current.finish()
    return output


def _decide_cache(
    decoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with use_cache=False where there must be no key-value cache, or no use for one.

    Without a word from the caller most models fill a cache in training too. It lays keys out in memory otherwise, and
    a matrix product may round otherwise for it; so a forward pass with gradients has one only where that is asked for.
    """
    stack: ReversibleStack = decoder._reversible_stack
    parameters = list(inspect.signature(type(decoder).forward).parameters)
    if "use_cache" not in parameters:
        return arguments, keywords
    # Most models pass it by name, CPM-Ant by position; `parameters` counts self.
    place = parameters.index("use_cache") - 1
    asked = keywords.get("use_cache", place < len(arguments) and arguments[place])
    impossible = _recomputes(stack) or stack.evaluates_attention_twice
    if asked and impossible:
        warnings.warn(
            "use_cache=True is set to False in a forward pass that evaluates layers twice (for the backward pass, "
            "or for their step): it would write to the cache twice.",
            stacklevel=3,
        )
    unasked = torch.is_grad_enabled() and not asked and not holds_cache(keywords)
    if not (impossible or unasked):
        return arguments, keywords
    if place < len(arguments):
        return (*arguments[:place], False, *arguments[place + 1 :]), keywords
    return arguments, keywords | {"use_cache": False}


@torch.compiler.disable
def layer_forward(layer: Any, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
    """Stand in for the forward of a layer of a reversible decoder."""
    if layer._reversible_role.stack.ordinary:
        return type(layer).forward(layer, hidden_states, *arguments, **keywords)
    current = _CURRENT_PASS.get()
    if current is None or current.stack is not layer._reversible_role.stack:
        raise RuntimeError(
            f"{type(layer).__name__} belongs to a reversible stack and was called outside its decoder's forward; call "
            f"the model, or revformers.make_residual(model) first."
        )
    return current.layer(layer, hidden_states, layer_inputs(layer, arguments, keywords))


@dataclass(frozen=True)
class LayerVisit:
    """One layer for a caller that keeps the states itself.

    Attributes:
        embedding: p[0] of the batch, (batch, tokens, width) in the compute dtype.
        ordinary: f_l, what the layer adds in the ordinary network.
        update: what its step adds under the model's dynamics, without update predictor.
        previous: for each feature of its update predictor that the layer before is evaluated for, that function.

    """

    embedding: Tensor
    ordinary: Field
    update: Field
    previous: Mapping[str, Field]


class _Visit:
    """A run through the decoder that computes only at one layer: what it prepares for the layers is its own."""

    def __init__(self, stack: ReversibleStack, index: int, visit: Callable[[LayerVisit], None]) -> None:
        self.stack = stack
        self._index = index
        self._visit = visit
        self._before: LayerCall | None = None

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Hand the functions of the chosen layer to the visitor; let every other layer pass."""
        call, returned = LayerCall(layer, layer._reversible_role.index, inputs), LayerReturn(keep=False)
        ordinary = ordinary_field(call, returned)
        if call.index == self._index:
            predictor = getattr(layer, "update_predictor", None)
            previous = previous_fields(predictor.form, self._before) if predictor is not None else {}
            update = block_field(call, self._before, self.stack.dynamics, returned)
            self._visit(LayerVisit(hidden, ordinary, update, previous))
        if find_layout(layer) is None:
            ordinary(hidden)  # only its evaluation tells in what form such a layer returns its hidden state
        self._before = call
        return returned.of(hidden)


def visit_layer(model: nn.Module, batch: Mapping[str, Tensor], index: int, visit: Callable[[LayerVisit], None]) -> None:
    """Call `visit` with layer `index`, as the decoder runs on `batch`.

    No other layer is evaluated, so that a whole stack can be walked layer by layer on states that the caller keeps.

    Args:
        model: a reversible model that steps by block.
        batch: what the decoder takes, e.g. ``{"input_ids": int64[batch, tokens]}``.
        index: the number of the layer.
        visit: given the functions of the layer, which it may call until it returns.

    """
    decoder = find_stack(model).decoder
    token = _CURRENT_PASS.set(_Visit(decoder._reversible_stack, index, visit))
    try:
        type(decoder).forward(decoder, **batch, use_cache=False)
    finally:
        _CURRENT_PASS.reset(token)


def _recomputes(stack: ReversibleStack) -> bool:
    return torch.is_grad_enabled() and stack.activations != "store"


def _refuse_cache(stack: ReversibleStack, inputs: dict[str, Any]) -> None:
    """Refuse a key-value cache where the backward pass would evaluate the layer, and write to the cache, again."""
    if _recomputes(stack) and holds_cache(inputs):
        raise ValueError(
            "A key-value cache (past_key_values, prefix tuning) cannot be used in a forward pass with gradients that "
            f'evaluates layers again (activations="{stack.activations}"); use torch.no_grad(), or '
            'revformers.set_activations(model, "store").'
        )


def _version(tensor: Tensor) -> int:
    """Return how often the tensor was written in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
