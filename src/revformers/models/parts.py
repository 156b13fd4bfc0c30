"""Access to the reversible parts of a model: its stack, its update predictors and its provenance."""

import torch
from torch import Tensor, nn

from revformers.models.discovery import unwrap
from revformers.models.forward import ReversibleStack
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import UpdatePredictor


def reversible_stack(model: nn.Module) -> ReversibleStack | None:
    """Return the reversible stack of a model, which holds its dynamics and policy; None for an ordinary network."""
    for module in unwrap(model).modules():
        stack = getattr(module, "_reversible_stack", None)
        if isinstance(stack, ReversibleStack):
            return stack
    return None


def require_reversible(model: nn.Module) -> ReversibleStack:
    """Return the reversible stack of a model; raise ValueError for an ordinary network."""
    reversible = reversible_stack(model)
    if reversible is None:
        raise ValueError(
            f"{type(unwrap(model)).__name__} is an ordinary network; call revformers.make_reversible(model, dynamics)."
        )
    return reversible


def update_predictors(model: nn.Module) -> list[UpdatePredictor]:
    """Return the update predictors of the layers, in order; an empty list without predictors.

    Copies that PEFT trains instead of them (modules_to_save) belong to an adapter and are not included.
    """
    named = unwrap(model).named_modules()
    return [module for name, module in named if isinstance(module, UpdatePredictor) and ".modules_to_save." not in name]


def record_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Add facts to the provenance of a reversible model, which its config.json and model card show.

    Raises:
        ValueError: if the model is ordinary.

    """
    reversible = require_reversible(model)
    reversible.provenance = (reversible.provenance or Provenance()).updated(provenance)


def predictor_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the update predictors by layer and name, without the weights of adapters."""
    weights = {}
    for layer, predictor in enumerate(update_predictors(model)):
        with torch.device("meta"):
            own = UpdatePredictor(predictor.bias.shape[0], predictor.form).state_dict().keys()
        for name, value in predictor.state_dict().items():
            name = name.replace(".base_layer.", ".")
            if name in own:
                weights[f"{layer}.{name}"] = value.detach().contiguous()
    return weights
