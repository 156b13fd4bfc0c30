"""Deploying a network that was trained reversibly as the ordinary network, which needs nothing of revformers."""

from typing import Any

from torch import nn

from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.errors import UserError
from revformers.models.state import reversible_stack, update_predictors
from revformers.reversible import make_residual

FEWEST_DEPLOYED_BITS = 1.5
"""Mean side information in bits an element a layer below which a network is not deployed as the ordinary one.

At 1 bit the conversion of a real model costs several per cent (docs/appendix/conversion.md), and training makes up for
that in weights that the ordinary network has no use for.
"""

PREDICTOR_MODULES = r".*\bupdate_predictor\b.*"
"""The modules that an adapter of the ordinary network leaves out, as PEFT matches their names."""


def check_deployable(model: nn.Module) -> None:
    """Raise UserError where the ordinary network is no relative of the one that is trained."""
    stack = reversible_stack(model)
    if stack is None:  # not converted: the ordinary network is what is trained
        return
    dynamics, layers = stack.dynamics, range(stack.number_of_layers)
    if not isinstance(dynamics, BlendedMidpoint):
        raise UserError(
            f"deploy: ordinary needs blends, which are nearly the ordinary network; the model has {dynamics.name}. Set "
            f"deploy to reversible."
        )
    bits = sum(map(dynamics.side_information_bits, layers)) / len(layers)
    if bits < FEWEST_DEPLOYED_BITS:
        raise UserError(
            f"With a mean of {bits:.3g} bits the model is too far from the ordinary network to be deployed as that; "
            f"convert with {FEWEST_DEPLOYED_BITS} bits or more, or set deploy to reversible."
        )


def leave_out_predictors(model: nn.Module, config: Any) -> None:
    """Keep an adapter out of the update predictors of `model`, unless its configuration says what it is kept out of.

    Args:
        model: the model that gets the adapter.
        config: the peft.LoraConfig, changed in place.

    """
    if update_predictors(model) and config.exclude_modules is None:
        config.exclude_modules = PREDICTOR_MODULES


def refuse_trained_predictors(adapted: nn.Module) -> None:
    """Raise UserError where the adapter of a PEFT model trains update predictors, which are dropped in the end."""
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if any(".update_predictor." in name for name in trained):
        raise UserError(
            "The adapter trains update predictors, which deploy: ordinary leaves out; change target_modules, "
            "modules_to_save, bias or exclude_modules in the adapter section, or set deploy to reversible."
        )


def deploy_as_ordinary(model: Any, *, converted_here: bool) -> bool:
    """Make the trained model the ordinary network, in place; its adapters become those of what was converted.

    Args:
        model: the model, or the PEFT model around it.
        converted_here: whether the run loaded the ordinary network, which its adapters then name.

    Returns:
        Whether its adapters, where it has any, name the model that they belong to: one that began as a reversible
        model may not know what it was converted from.

    """
    stack = reversible_stack(model)
    make_residual(model)
    named = True
    for config in getattr(model, "peft_config", {}).values():
        if config.exclude_modules == PREDICTOR_MODULES:
            config.exclude_modules = None  # PEFT warns of a pattern that nothing fits
        if stack is not None and not converted_here:
            # Not the reversible model that the run began with, which only revformers loads.
            # Empty and not None, for which PEFT puts the name of the model.
            config.base_model_name_or_path = (stack.provenance.base_model if stack.provenance else None) or ""
            named = bool(config.base_model_name_or_path)
    return named
