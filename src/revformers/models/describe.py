"""The description of a model: ordinary or reversible, its recurrence, and what it keeps for the backward pass."""

from dataclasses import dataclass

from torch import nn

from revformers.models.discovery import unwrap
from revformers.models.parts import predictor_weights, reversible_stack, update_predictors


@dataclass(frozen=True)
class Description:
    """A model's dynamics, activation policy, side information and update predictors; `str` formats them as text.

    Attributes:
        model: the class of the model, e.g. "LlamaForCausalLM".
        reversible: whether it follows a recurrence of this library; if not, the attributes below are None.
        recurrence: the dynamics in one line.
        layers: number of layers.
        granularity: the unit that one step evaluates, "block" or "branch".
        start: the choice of p[-1]; see `Dynamics`.
        readout: the state that the head reads; see `Dynamics`.
        activations: the activation policy.
        states: the format of the states, in words.
        kept: what the policy keeps for the backward pass, in words.
        bits: side information per step, bits per element, mean over the layers; None without an inverse.
        predictors: number of update predictors.
        predictor_parameters: total number of parameters of the update predictors.
        base_model: hub id of the ordinary model that it came from, if known.

    """

    model: str
    reversible: bool
    recurrence: str | None = None
    layers: int | None = None
    granularity: str | None = None
    start: str | None = None
    readout: str | None = None
    activations: str | None = None
    states: str | None = None
    kept: str | None = None
    bits: float | None = None
    predictors: int | None = None
    predictor_parameters: int | None = None
    base_model: str | None = None

    def __str__(self) -> str:
        """Return the description as a few lines of text."""
        if not self.reversible:
            return f"{self.model}: an ordinary network"
        lines = {
            "dynamics": self.recurrence,
            "steps": f"one per {self.granularity}, {self.layers} layers; p[-1]: {self.start}; readout: {self.readout}",
            "activations": f"{self.activations}: keeps {self.kept}",
            "states": self.states,
            "side information": "none, there is no inverse"
            if self.bits is None
            else f"{self.bits:g} {'bit' if self.bits == 1 else 'bits'} per element and step, on average",
            "update predictors": f"{self.predictors}, {self.predictor_parameters:,} parameters"
            if self.predictors
            else "none",
        }
        if self.base_model:
            lines["base model"] = self.base_model
        return "\n".join([f"{self.model}: reversible", *(f"  {name:<19}{text}" for name, text in lines.items())])


def describe(model: nn.Module) -> Description:
    """Return the description of a model.

    Args:
        model: a model of transformers, or a PEFT model around one.

    """
    name = type(unwrap(model)).__name__
    reversible = reversible_stack(model)
    if reversible is None:
        return Description(name, reversible=False)
    dynamics, activations, layers = reversible.dynamics, reversible.activations, reversible.number_of_layers
    bits = None
    if dynamics.reversible:
        bits = dynamics.mean_side_information_bits(layers)
    kept = activations.keeps
    if activations.needs_inverse and bits:
        kept += ", and side information"
    predictors = update_predictors(model)
    return Description(
        name,
        reversible=True,
        recurrence=dynamics.recurrence,
        layers=layers,
        granularity=dynamics.granularity,
        start=dynamics.start,
        readout=dynamics.readout,
        activations=str(activations),
        states=reversible.states.in_words,
        kept=kept,
        bits=bits,
        predictors=len(predictors),
        predictor_parameters=sum(value.numel() for value in predictor_weights(model).values()),
        base_model=reversible.provenance.base_model if reversible.provenance else None,
    )
