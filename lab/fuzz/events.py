"""Events between the forward pass and the backward pass.

Every event returns whether it changed or wrote to anything that a layer uses; if it did, an error is a valid outcome.
Otherwise, and after every harmless event, every policy has to give the stored gradient.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revformers.models.tiles import set_mlp_tiles


@dataclass(frozen=True)
class Scene:
    """The objects that an event can act on.

    Attributes:
        model: the reversible model, after a forward pass of the first batch.
        layer: one of its layers.
        weight: one of the layer's parameters.
        batches: the two batches.
        loss: returns the loss of a batch in another forward pass.
        draw: random numbers of the set-up.
        has_dropout: whether a layer has dropout.

    """

    model: Any
    layer: nn.Module
    weight: nn.Parameter
    batches: list[dict[str, Any]]
    loss: Callable[[int], Tensor]
    draw: random.Random
    has_dropout: bool


Event = Callable[[Scene], bool]


def _nothing(scene: Scene) -> bool:
    return False


def _draw_random_numbers(scene: Scene) -> bool:
    for device in {torch.device("cpu"), scene.weight.device}:
        torch.rand(17, device=device)
    return False


def _another_forward_pass(scene: Scene) -> bool:
    scene.loss(1)
    return False


def _another_step(scene: Scene) -> bool:
    torch.autograd.grad(scene.loss(1), [one for one in scene.model.parameters() if one.requires_grad][:1])
    return False


def _generate(scene: Scene) -> bool:
    with torch.no_grad():
        scene.model(input_ids=scene.batches[1]["input_ids"])
    return False


def _step(scene: Scene) -> bool:
    with torch.no_grad():
        scene.weight.mul_(1.5)
    return True


def _write_to_data(scene: Scene) -> bool:
    scene.weight.data.mul_(1.5)
    return bool(scene.weight.any())


def _give_other_data(scene: Scene) -> bool:
    scene.weight.data = scene.weight.data * 1.5
    return True


def _write_to_a_bias(scene: Scene) -> bool:
    with torch.no_grad():
        next((one for one in scene.layer.parameters() if one.dim() == 1), scene.weight).add_(0.5)
    return True


def _freeze(scene: Scene) -> bool:
    was = scene.weight.requires_grad
    scene.weight.requires_grad_(False)
    return was


def _unfreeze(scene: Scene) -> bool:
    changes = not all(one.requires_grad for one in scene.layer.parameters())
    scene.layer.requires_grad_(True)
    return changes


def _swap_frozen(scene: Scene) -> bool:
    for one in scene.layer.parameters():
        one.requires_grad_(not one.requires_grad)
    return True


def _eval(scene: Scene) -> bool:
    scene.model.eval()
    return scene.has_dropout


def _refill_mask(scene: Scene) -> bool:
    mask = scene.batches[0].get("attention_mask")
    if mask is None or mask.dim() < 4:
        return False
    mask.copy_(mask.flip(0).roll(1, -1))
    return True


def _refill_mask_unseen(scene: Scene) -> bool:
    mask = scene.batches[0].get("attention_mask")
    if mask is None or mask.dim() < 4:
        return False
    mask.data.copy_(mask.flip(0).roll(1, -1))
    return True


def _change_threads(scene: Scene) -> bool:
    torch.set_num_threads(2)
    return True


def _tile(scene: Scene) -> bool:
    tiled = any("tokens_in_tile" in vars(module) for module in scene.model.modules())
    try:
        set_mlp_tiles(scene.model, None if tiled else 5)
    except ValueError:
        return False
    return True


def _change_dtype(scene: Scene) -> bool:
    scene.model.to(torch.float32 if scene.weight.dtype == torch.float64 else torch.float64)
    return True


def _disable_adapters(scene: Scene) -> bool:
    if not hasattr(scene.model, "merge_adapter"):
        return False
    scene.model.base_model.disable_adapter_layers()
    return True


def _merge_adapters(scene: Scene) -> bool:
    if not hasattr(scene.model, "merge_adapter"):
        return False
    scene.model.merge_adapter()
    return True


def _add_hook(scene: Scene) -> bool:
    parts = [part for part in scene.layer.modules() if not any(part.children())]
    scene.draw.choice(parts).register_forward_hook(_enlarge)
    return True


def _enlarge(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output * 1.5 if isinstance(output, Tensor) else output


def _another_activation_function(scene: Scene) -> bool:
    found = [
        (part, name)
        for part in scene.layer.modules()
        for name, _ in part.named_children()
        if name in {"act", "act_fn", "activation", "activation_fn"}
    ]
    for part, name in found:
        setattr(part, name, nn.Tanh())
    return bool(found)


HARMLESS: dict[str, Event] = {
    "nothing": _nothing,
    "draw random numbers": _draw_random_numbers,
    "another forward pass": _another_forward_pass,
    "another step": _another_step,
    "generate without a gradient": _generate,
}
"""Events that change nothing that a layer uses."""

HARMFUL: dict[str, Event] = {
    "optimizer step": _step,
    "write to a weight's data": _write_to_data,
    "give a weight other data": _give_other_data,
    "freeze weights": _freeze,
    "unfreeze weights": _unfreeze,
    "swap what is frozen": _swap_frozen,
    "eval": _eval,
    "refill the mask": _refill_mask,
    "refill the mask unseen": _refill_mask_unseen,
    "change the threads": _change_threads,
    "tile the MLPs": _tile,
    "change the dtype": _change_dtype,
    "disable adapters": _disable_adapters,
    "merge adapters": _merge_adapters,
    "write to a bias": _write_to_a_bias,
    "add a hook": _add_hook,
    "another activation function": _another_activation_function,
}
"""Events that change, or may change, the result of a layer's second evaluation."""

OF_ONE_LAYER = {
    "optimizer step",
    "write to a weight's data",
    "give a weight other data",
    "freeze weights",
    "unfreeze weights",
    "swap what is frozen",
    "write to a bias",
    "add a hook",
    "another activation function",
}
"""Events that change one layer, which an error has to name; or the next one, if that one evaluates both."""
