"""The forward pass of a reversible model: the decoder's own loop over its layers, with the recurrence inside it.

No module is wrapped or rewritten. The `forward` of the decoder and of each layer is replaced on the object: the
decoder's opens a `Pass`, and each layer's takes its steps in it. So module names, state-dict keys, hooks on the
layers, masks, position embeddings and caches do not change.
"""

import contextlib
import dataclasses
import inspect
import warnings
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from revformers.activations.budget.report import BudgetReport
from revformers.dynamics.base import Coefficients, Dynamics
from revformers.engine.fixed_point import FixedPoint
from revformers.engine.forward_pass import BeginPass, ForwardPass
from revformers.engine.gradient_dtype import gradient_dtype
from revformers.engine.range_watch import RangeWatch
from revformers.engine.states import StatePair
from revformers.engine.trajectory import Trajectory
from revformers.errors import NotReversibleError
from revformers.models.batch_hooks import batch_hooks, has_batch_hooks, with_batch_hooks
from revformers.models.fields import Evaluate, LayerCall, LayerReturn, evaluate, holds_cache, layer_inputs, named_fields
from revformers.models.identity import Identity
from revformers.models.tracing import NEVER_COMPILED, refuse_export, warn_of_uncompiled_layers
from revformers.private_api import current_backward_pass, has_accumulation_hooks, version_of


@dataclass(kw_only=True)
class ReversibleStack(Identity):
    """The reversible state of a decoder, stored on it as `_reversible_stack` and in the model's configuration.

    Attributes:
        number_of_layers: the depth of the decoder.
        ordinary: whether the decoder currently runs as the ordinary network; see `revformers.ordinary`.
        budget_report: the report of the last forward pass under a `Budget`.
        evaluate: the function that evaluates the layers; see `revformers.compile_layers`.
        fixed_point: the format of the states in the last forward pass; None before the first.
        owner: the model that was made reversible, whose configuration holds this object.
        range_watch: the magnitudes of its forward passes.
        warned_of_uncompiled_layers: whether the warning that torch.compile does not compile the layers was given.

    """

    number_of_layers: int
    ordinary: bool = False
    budget_report: BudgetReport | None = None
    evaluate: Evaluate = evaluate
    warned_of_uncompiled_layers: bool = False
    fixed_point: FixedPoint | None = None
    owner: "weakref.ref[nn.Module] | None" = None
    _steps: tuple[Dynamics, list[Coefficients]] | None = None
    _bound: list[tuple[tuple[Any, ...], BeginPass]] = dataclasses.field(default_factory=list)
    range_watch: RangeWatch = dataclasses.field(default_factory=RangeWatch)

    @property
    def largest_magnitude(self) -> float:
        """Of a state or an update, over all forward passes since this was last set to 0; waits for the device."""
        return self.range_watch.largest

    @largest_magnitude.setter
    def largest_magnitude(self, value: float) -> None:
        self.range_watch.largest = value

    def __getstate__(self) -> dict[str, Any]:
        """Omit what belongs to this process: compiled layers, as PyTorch does, and the weak reference."""
        return vars(self) | {"evaluate": evaluate, "owner": None, "_bound": []}

    @property
    def predictor_features(self) -> tuple[str, ...]:
        """The features of the layers' update predictors; empty without predictors."""
        return () if self.predictor_form is None else self.predictor_form.features

    @property
    def steps(self) -> list[Coefficients]:
        """a, b and c of every step, in order; computed once for the dynamics."""
        if self._steps is None or self._steps[0] != self.dynamics:
            self._steps = self.dynamics, self.dynamics.steps(self.number_of_layers)
        return self._steps[1]

    def begin_pass(self, states: StatePair) -> ForwardPass:
        """Begin a forward pass under the activation policy, which is bound to this stack at its first use."""
        dynamics = self.dynamics
        # Whatever else changes the memory of a pass, policies have to find out for themselves.
        # The text tells Budget(1), one byte, from Budget(1.0), all free memory, which are equal in Python.
        policy = self.activations, str(self.activations)
        key = policy, self.evaluate, dynamics.steps_per_layer, dynamics.evaluations_per_step
        begin = next((begin for known, begin in self._bound if known == key), None)
        if begin is None:
            begin = self.activations.bind(dynamics.steps_per_layer)
            if not callable(begin):
                raise TypeError(
                    f"{type(self.activations).__name__}.bind returns {begin!r}; it must return a function that begins "
                    f"a forward pass."
                )
            self._bound.append((key, begin))
        forward_pass = begin(states, self.steps)
        if not isinstance(forward_pass, ForwardPass):
            raise TypeError(
                f"The function that {type(self.activations).__name__}.bind returns must begin a ForwardPass, but "
                f"returns {forward_pass!r}."
            )
        return forward_pass

    @property
    def evaluates_attention_twice(self) -> bool:
        """Whether a step evaluates the attention of the layer before, which key-value caches do not support."""
        second = self.number_of_layers > 1 and self.dynamics.evaluations_per_step > 1
        return second or "previous_update" in self.predictor_features

    @property
    def evaluates_mlps_twice(self) -> bool:
        """Whether a step evaluates the MLP of the layer before, whose router would be counted twice."""
        return self.evaluates_attention_twice or "previous_mlp" in self.predictor_features


@dataclass
class LayerRole:
    """A layer's place in its reversible stack, stored on the layer as `_reversible_role`."""

    stack: ReversibleStack
    index: int


class Pass:
    """One forward pass through a decoder: its trajectory, and the number of the next layer."""

    def __init__(self, stack: ReversibleStack, decoder: nn.Module) -> None:
        self.stack = stack
        self._decoder = decoder
        self._next = 0
        self._before: LayerCall | None = None
        self._weights_before: list[tuple[nn.Parameter, torch.Size]] = []
        self._trajectory: Trajectory | None = None
        self._version = 0
        self._others: list[Tensor] = []
        _refuse_changed_list(decoder, stack)
        self._keeps_batch_hooks = _recomputes(stack) and has_batch_hooks(decoder)

    @property
    def states(self) -> StatePair | None:
        """The two states that the next layer steps from, whose argument is one of them, rounded; None at first."""
        return None if self._trajectory is None else self._trajectory.states

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Take the steps of `layer` and return p[l+1], or the readout after the last layer.

        For a layer that returns further values (attention weights), return a tuple that includes them.
        """
        index = layer._reversible_role.index
        if index != self._next:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} called layer {index} where layer {self._next} was due; only decoders "
                f"that run every layer once and in order can be reversed."
            )
        passed_on = any(value is other for value in inputs.values() for other in self._others)
        if passed_on and _recomputes(self.stack):  # harmless without a second evaluation (XLNet)
            raise NotReversibleError(
                f"{type(self._decoder).__name__} passes more than the hidden state from layer to layer; only layers "
                f"that map one hidden state to one hidden state can be reversed."
            )
        _refuse_cache(self.stack, inputs)
        self._refuse_other_devices(layer, hidden)
        if self.stack.evaluates_mlps_twice:
            self._refuse_resharded_weights()
            self._weights_before = [(weight, weight.shape) for weight in layer.parameters()]
        if self._trajectory is None:
            self._refuse_early_exit()
            self.stack.range_watch.raise_for_abandoned()
            # Not read from the stack again, where a pass in another thread may have left its own by then.
            fixed_point = self.stack.fixed_point = self.stack.states.of_pass(hidden.dtype, hidden.device)
            self._trajectory = Trajectory(
                self.stack.dynamics,
                self.stack.begin_pass,
                hidden,
                fixed_point=fixed_point,
                gradient_dtype=gradient_dtype(hidden.dtype, self.stack.steps),
                range_at_once=_checks_range_at_once(self.stack, self._decoder, hidden),
            )
            hidden = self._trajectory.hidden
        else:
            self._refuse_change(hidden)
        returned = LayerReturn()
        call = LayerCall(layer, index, inputs, self.stack.evaluate)
        before = self._before.layer if self._before else layer
        hooks = batch_hooks(before, layer) if self._keeps_batch_hooks else ()
        coefficients = self.stack.steps[index * self.stack.dynamics.steps_per_layer]
        for name, field in named_fields(call, self._before, self.stack.dynamics, returned):
            if hooks:
                field = with_batch_hooks(field, hooks)
            hidden = self._trajectory.step(name, coefficients, field, hidden)
        self._before = call
        self._next += 1
        if self._next == self.stack.number_of_layers:
            self.stack.budget_report = self._trajectory.report or self.stack.budget_report
            hidden = self._trajectory.readout()
            self.stack.range_watch.add(self._trajectory.range_check)
        self._version = version_of(hidden)
        return self._with_others(hidden, returned)

    def _with_others(self, hidden: Tensor, returned: LayerReturn) -> Any:
        others = returned.finish()
        self._others = [value for value in others or () if isinstance(value, Tensor)]
        return hidden if others is None else (hidden, *others)

    def finish(self) -> None:
        """Raise NotReversibleError if the decoder ran fewer layers than it has."""
        if self._next != self.stack.number_of_layers:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} ran {self._next} of its {self.stack.number_of_layers} layers; only "
                f"decoders that run every layer once and in order can be reversed."
            )

    def end_early(self, error: Exception) -> None:
        """Look at the range of the states if `error` ends the pass before the last layer: a hook may have kept some.

        Raises:
            StateRangeError: if a value is out of range; never after an error of the device, nor if it cannot answer.

        """
        if self._trajectory is None or self._next == self.stack.number_of_layers:
            return
        if not _may_be_of_device(error, self._trajectory.hidden.device):
            with contextlib.suppress(RuntimeError):
                self._trajectory.range_check.raise_if_exceeded()
                self.stack.range_watch.add(self._trajectory.range_check)

    def _refuse_other_devices(self, layer: nn.Module, hidden: Tensor) -> None:
        """Refuse layers on several devices, and training with weights that accelerate offloads to disk or host memory.

        The states stay on one device. Weights that are loaded for one evaluation lose their gradients without an error
        of PyTorch.
        """
        states = hidden.device if self._trajectory is None else self._trajectory.hidden.device
        if hidden.device != states:
            raise ValueError(
                f"{type(self._decoder).__name__} runs layer {self._next} on {hidden.device} and the layers before it "
                f"on {states}; a reversible model runs on one device per process: load it with device_map={{'': 0}}, "
                f"or shard it with FSDP."
            )
        if torch.is_grad_enabled() and not hidden.is_meta and any(value.is_meta for value in layer.parameters()):
            raise ValueError(
                f"{type(self._decoder).__name__} cannot train layer {self._next}, whose weights are not on the device "
                f"of its input: device_map offloads them, which is for inference; load the model without it, or shard "
                f"it with FSDP."
            )

    def _refuse_resharded_weights(self) -> None:
        """Refuse to evaluate the layer before a second time if its weights were sharded again after the first."""
        now = self._before.layer.parameters() if self._before else ()
        for (weight, shape), held in zip(self._weights_before, now, strict=True):
            if held is not weight or held.shape != shape:
                raise ValueError(
                    f"Layer {self._next} evaluates layer {self._next - 1} as well, whose weights were sharded again "
                    f"after its own evaluation: give FSDP2 (not FSDP1) reshard_after_forward=False, or "
                    f'convert with the predictor "update", or dynamics that evaluate a layer once.'
                )

    def _refuse_early_exit(self) -> None:
        """Refuse generation with assistant_early_exit, which lowers config.num_hidden_layers while it drafts."""
        depth, config = self.stack.number_of_layers, cast(Any, self._decoder.config)
        asked = getattr(config, "num_hidden_layers", depth)
        if asked < depth:
            config.num_hidden_layers = depth  # the error skips the line of transformers that restores it
            raise NotReversibleError(
                f"{type(self._decoder).__name__} cannot run only the first {asked} of its {depth} layers, as "
                f"assistant_early_exit asks, because it is reversible; config.num_hidden_layers was set back to "
                f"{depth}."
            )

    def _refuse_change(self, hidden: Tensor) -> None:
        """Refuse a decoder that changes the hidden state between two layers, which the inverse could not undo."""
        assert self._trajectory is not None
        expected = self._trajectory.hidden
        # Another tensor with the same memory is allowed: FSDP passes a layer's input through an autograd node.
        same = hidden is expected or (hidden.shape == expected.shape and hidden.data_ptr() == expected.data_ptr())
        if expected.grad_fn is not None and hidden.grad_fn is None and self.stack.dynamics.reversible:
            raise NotReversibleError(
                f"Something between layers {self._next - 1} and {self._next} of {type(self._decoder).__name__} "
                f"detaches the hidden state (a forward hook that returns output.detach()), but a reversible layer "
                f"reads the last two states, so the gradient would still flow through the other one; freeze the layers "
                f"below (requires_grad_(False)) instead."
            )
        if not same or version_of(hidden) != self._version:
            raise NotReversibleError(
                f"{type(self._decoder).__name__} changes the hidden state between layers {self._next - 1} and "
                f"{self._next}; only decoders that hand a layer's output to the next layer as it is can be reversed. "
                f"If FSDP2 casts it, leave output_dtype out of the layers' MixedPrecisionPolicy; that of the whole "
                f"model may have it."
            )


def _refuse_changed_list(decoder: nn.Module, stack: ReversibleStack) -> None:
    """Refuse a decoder whose list of layers has changed since it was made reversible."""
    layers = next(
        (
            list(children)
            for module in (decoder, *decoder.children())
            for children in module.children()
            if isinstance(children, nn.ModuleList) and any(hasattr(child, "_reversible_role") for child in children)
        ),
        [],
    )
    roles = [getattr(layer, "_reversible_role", None) for layer in layers]
    places = [(id(role.stack), role.index) if role else None for role in roles]
    if places != [(id(stack), index) for index in range(stack.number_of_layers)]:
        raise NotReversibleError(
            f"The layers of {type(decoder).__name__} are not the {stack.number_of_layers} that were made reversible: "
            f"some have been added, removed, replaced or copied (layer_replication of PEFT); change the list of "
            f"layers before revformers.make_reversible or revformers.convert. Stages of a pipeline "
            f"(torch.distributed.pipelining) cannot be reversible, because they pass on one state, not two; shard the "
            f"weights with FSDP2 instead."
        )


class LayerRun(Protocol):
    """A run of a decoder, which its layers call: a forward pass, or a visit to one of them."""

    stack: ReversibleStack

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Return the output of `layer` for `hidden` and its other arguments, by name."""


CURRENT_RUN: ContextVar[LayerRun | None] = ContextVar("revformers_run", default=None)


def decoder_forward(decoder: Any, *arguments: Any, **keywords: Any) -> Any:
    """Stand in for the forward of a reversible decoder."""
    if decoder._reversible_stack.ordinary:
        return type(decoder).forward(decoder, *arguments, **keywords)
    # When torch.compile traces this line, it records True as an argument of the uncompiled call.
    return _run_decoder(decoder, torch.compiler.is_compiling(), arguments, keywords)


@torch.compiler.disable(reason=NEVER_COMPILED)
def _run_decoder(decoder: Any, compiling: bool, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Run a decoder in a new `Pass`.

    Args:
        decoder: the decoder.
        compiling: whether compiled code calls it.
        arguments: the positional arguments of its forward.
        keywords: the keyword arguments of its forward.

    """
    stack: ReversibleStack = decoder._reversible_stack
    refuse_export(decoder)
    if compiling:
        _warn_of_uncompiled_layers(stack)
    _refuse_collecting_twice(decoder, arguments, keywords)
    arguments, keywords = _decide_cache(decoder, arguments, keywords)
    current = Pass(stack, decoder)
    token = CURRENT_RUN.set(current)
    try:
        output = type(decoder).forward(decoder, *arguments, **keywords)
    except Exception as error:
        current.end_early(error)
        raise
    finally:
        CURRENT_RUN.reset(token)
    current.finish()
    return output


def _warn_of_uncompiled_layers(stack: ReversibleStack) -> None:
    """Warn once per model, unless `compile_layers` compiles its layers."""
    if stack.evaluate is evaluate and not stack.warned_of_uncompiled_layers:
        stack.warned_of_uncompiled_layers = True
        warn_of_uncompiled_layers()


def _argument(decoder: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any], name: str) -> Any:
    """Return the argument `name` of a decoder's call; most models pass options by name, CPM-Ant by position."""
    place = _place(decoder, name)
    return arguments[place] if place is not None and place < len(arguments) else keywords.get(name)


def _place(decoder: Any, name: str) -> int | None:
    parameters = list(inspect.signature(type(decoder).forward).parameters)
    return parameters.index(name) - 1 if name in parameters else None  # without self


def _refuse_collecting_twice(decoder: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Refuse to collect outputs of modules that a step evaluates twice, because transformers would collect both."""
    stack: ReversibleStack = decoder._reversible_stack
    for name, twice, what in (
        ("output_router_logits", stack.evaluates_mlps_twice, "MLPs"),
        ("output_attentions", stack.evaluates_attention_twice, "attention"),
    ):
        asked = _argument(decoder, arguments, keywords, name)
        if twice and (getattr(decoder.config, name, False) if asked is None else asked):
            raise ValueError(
                f"{name} cannot be used with a model that evaluates {what} twice per step, because both evaluations "
                f'would count; convert with the predictor "update", or switch {name} off.'
            )


def _decide_cache(
    decoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments, with use_cache=False if a key-value cache is not possible or was not requested.

    By default most models fill a cache in training too. It changes the memory layout of the keys, and with it possibly
    the rounding of matrix products, so a forward pass with gradients uses a cache only on request.
    """
    stack: ReversibleStack = decoder._reversible_stack
    place = _place(decoder, "use_cache")
    if place is None:
        return arguments, keywords
    asked = _argument(decoder, arguments, keywords, "use_cache")
    impossible = _recomputes(stack) or stack.evaluates_attention_twice
    if asked and impossible:
        warnings.warn(
            "use_cache=True is set to False in a forward pass that evaluates layers twice (for the backward pass, "
            "or within their step), because it would write to the cache twice.",
            stacklevel=5,
        )
    unasked = torch.is_grad_enabled() and not asked and not holds_cache(keywords)
    if not (impossible or unasked):
        return arguments, keywords
    if place < len(arguments):
        return (*arguments[:place], False, *arguments[place + 1 :]), keywords
    return arguments, keywords | {"use_cache": False}


def layer_forward(layer: Any, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
    """Stand in for the forward of a layer of a reversible decoder."""
    if layer._reversible_role.stack.ordinary:
        return type(layer).forward(layer, hidden_states, *arguments, **keywords)
    return _run_layer(layer, torch.compiler.is_compiling(), hidden_states, arguments, keywords)


@torch.compiler.disable(reason=NEVER_COMPILED)
def _run_layer(
    layer: Any, compiling: bool, hidden_states: Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """Run a layer in the pass of its decoder; see `_run_decoder`."""
    stack: ReversibleStack = layer._reversible_role.stack
    if compiling:
        _warn_of_uncompiled_layers(stack)
    current = CURRENT_RUN.get()
    if current is not None and current.stack is not stack:
        raise NotReversibleError(
            f"This {type(layer).__name__} is not the one that was made reversible with its decoder, but a copy or "
            f"another model's; change the list of layers (layer_replication of PEFT) before revformers.make_reversible "
            f"or revformers.convert."
        )
    if current is None and current_backward_pass() is not None:
        raise RuntimeError(
            f"Activation checkpointing around the layers (FSDP's activation_checkpointing in accelerate, or "
            f"torch.utils.checkpoint) evaluates {type(layer).__name__} again in the backward pass, outside its "
            f"reversible decoder; switch it off, and call revformers.set_activations(model, revformers.Checkpoint())."
        )
    if current is None:
        raise RuntimeError(
            f"{type(layer).__name__} belongs to a reversible stack and was called outside its decoder's forward, as a "
            f"stage of a pipeline calls it; call the model, or revformers.make_residual(model) first."
        )
    return current.layer(layer, hidden_states, layer_inputs(layer, arguments, keywords))


def _checks_range_at_once(stack: ReversibleStack, decoder: nn.Module, hidden: Tensor) -> bool:
    """Whether the forward pass looks at the range of the states, and not the end of the backward pass.

    So it does where it need not wait for a device, and where an optimizer may step weights in the backward pass, the
    head's among them, for which an error at its end would be late.
    """
    model = (stack.owner and stack.owner()) or decoder
    return hidden.is_cpu or any(map(has_accumulation_hooks, model.parameters()))


def _may_be_of_device(error: Exception, device: torch.device) -> bool:
    """Whether a device may have raised this error, and waiting for it might raise another, or never end."""
    of_device = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)
    return of_device or (isinstance(error, RuntimeError) and device.type != "cpu")


def _recomputes(stack: ReversibleStack) -> bool:
    return torch.is_grad_enabled() and stack.activations.evaluates_again


def _refuse_cache(stack: ReversibleStack, inputs: dict[str, Any]) -> None:
    """Refuse a key-value cache if the backward pass would evaluate the layer again, and so write to the cache twice."""
    if _recomputes(stack) and holds_cache(inputs):
        raise ValueError(
            "A key-value cache (past_key_values, prefix tuning) cannot be used in a forward pass with gradients that "
            f'evaluates layers again (activations="{stack.activations}"); use torch.no_grad(), or '
            "revformers.set_activations(model, revformers.Store())."
        )
