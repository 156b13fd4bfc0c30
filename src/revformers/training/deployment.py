"""Deployment of a reversibly trained network as the ordinary network, which runs without revformers."""

from typing import Any

from torch import nn

from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.errors import UserError
from revformers.models.parts import reversible_stack, update_predictors
from revformers.reversible import make_residual

FEWEST_DEPLOYED_BITS = 1.5
"""Smallest mean side information, in bits per element and layer, of a network that is deployed as the ordinary one.

At 1 bit the conversion of a real model raises its loss by several per cent (docs/appendix/conversion.md). Training
makes up for it by changes of the weights that do not help the ordinary network.
"""

PREDICTOR_MODULES = r".*\bupdate_predictor\b.*"
"""Pattern of PEFT for the modules that an adapter of the ordinary network leaves out."""


def check_deployable(model: nn.Module) -> None:
    """Raise UserError if the ordinary network differs too much from the one that is trained."""
    stack = reversible_stack(model)
    if stack is None:  # not converted: the ordinary network is what is trained
        return
    dynamics = stack.dynamics
    if not isinstance(dynamics, BlendedMidpoint):
        raise UserError(
            f"deploy: ordinary needs dynamics with blends, which stay close to the ordinary network; the model has "
            f"{dynamics.name}. Set deploy to reversible."
        )
    bits = dynamics.mean_side_information_bits(stack.number_of_layers)
    if bits < FEWEST_DEPLOYED_BITS:
        raise UserError(
            f"With a mean of {bits:.3g} bits the model is too far from the ordinary network to be deployed as it; "
            f"convert with {FEWEST_DEPLOYED_BITS} bits or more, or set deploy to reversible."
        )


def leave_out_predictors(model: nn.Module, config: Any) -> None:
    """Exclude the update predictors of `model` from an adapter, unless its configuration excludes other modules.

    Args:
        model: the model that gets the adapter.
        config: the peft.LoraConfig, changed in place.

    """
    if update_predictors(model) and config.exclude_modules is None:
        config.exclude_modules = PREDICTOR_MODULES


def refuse_trained_predictors(adapted: nn.Module) -> None:
    """Raise UserError if the adapter of a PEFT model trains update predictors, which deployment drops."""
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if any(".update_predictor." in name for name in trained):
        raise UserError(
            "The adapter trains update predictors, which deploy: ordinary leaves out; change target_modules, "
            "modules_to_save, bias or exclude_modules in the adapter section, or set deploy to reversible."
        )


def deploy_as_ordinary(model: Any, *, converted_here: bool) -> bool:
    """Turn the trained model into the ordinary network, in place; its adapters then name the model before conversion.

    Args:
        model: the model, or the PEFT model around it.
        converted_here: whether the run loaded the ordinary network, which its adapters already name.

    Returns:
        Whether its adapters, if any, name their base model. A run that began with a reversible model may not know
        which model that was converted from.

    """
    stack = reversible_stack(model)
    make_residual(model)
    named = True
    for config in getattr(model, "peft_config", {}).values():
        if config.exclude_modules == PREDICTOR_MODULES:
            config.exclude_modules = None  # PEFT warns about a pattern without matches
        if stack is not None and not converted_here:
            # The run began with a reversible model, which only revformers loads: name the one it was converted from.
            # If unknown, the name is empty: PEFT replaces None by the name of the model.
            config.base_model_name_or_path = (stack.provenance.base_model if stack.provenance else None) or ""
            named = bool(config.base_model_name_or_path)
    return named
