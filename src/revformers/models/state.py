"""What a model is: reversible or ordinary, and with which parts."""

import torch
from torch import Tensor, nn

from revformers.models.discovery import unwrap
from revformers.models.forward import ReversibleStack
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import UpdatePredictor


def reversible_stack(model: nn.Module) -> ReversibleStack | None:
    """Return the dynamics and the policy of a model, or None where it is an ordinary network."""
    for module in unwrap(model).modules():
        stack = getattr(module, "_reversible_stack", None)
        if isinstance(stack, ReversibleStack):
            return stack
    return None


def require_reversible(model: nn.Module) -> ReversibleStack:
    """Return the dynamics and the policy of a reversible model; raise ValueError for an ordinary one."""
    reversible = reversible_stack(model)
    if reversible is None:
        raise ValueError(
            f"{type(unwrap(model)).__name__} is an ordinary network; call revformers.make_reversible(model, dynamics)."
        )
    return reversible


def update_predictors(model: nn.Module) -> list[UpdatePredictor]:
    """Return the update predictors that a conversion gave the layers, in order; none otherwise.

    Copies that PEFT trains in their place (modules_to_save) are an adapter's, and do not count.
    """
    named = unwrap(model).named_modules()
    return [module for name, module in named if isinstance(module, UpdatePredictor) and ".modules_to_save." not in name]


def record_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Keep where a reversible model came from, for its config and its card; what was known before stays.

    Raises:
        ValueError: for an ordinary model.

    """
    reversible = require_reversible(model)
    reversible.provenance = (reversible.provenance or Provenance()).updated(provenance)


def predictor_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the update predictors by layer and name, without those of adapters on them."""
    weights = {}
    for layer, predictor in enumerate(update_predictors(model)):
        with torch.device("meta"):
            own = UpdatePredictor(predictor.bias.shape[0], predictor.form).state_dict().keys()
        for name, value in predictor.state_dict().items():
            name = name.replace(".base_layer.", ".")
            if name in own:
                weights[f"{layer}.{name}"] = value.detach().contiguous()
    return weights
