"""MLPs in tiles: what an MLP computes inside exists for a few tokens at a time, forwards and backwards.

An MLP widens the stream several times over, so its inner activations are most of what one layer needs at once. It
treats every token apart, so it can be evaluated tile by tile. Each tile is checkpointed: whatever a layer keeps for its
backward pass, stored or rebuilt, is then the input of its tiles, and one tile is evaluated again at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from revformers.activations.checkpoint import checkpointed
from revformers.models.discovery import find_stack
from revformers.models.families import find_layout
from revformers.models.stand_in import StandIn, refuse_replaced


def set_mlp_tiles(model: nn.Module, tokens: int | None) -> None:
    """Evaluate the MLP of every layer on tiles of so many tokens, in place, in an ordinary or a reversible model.

    It costs one more evaluation of every MLP in a step. Rebuilt gradients still equal stored ones to the bit. Against a
    model without tiles the gradients of the MLPs' weights differ by rounding, as they are summed tile by tile in the
    dtype of the weights: in bfloat16 take few tiles.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokens: of the batch in a tile; None evaluates the MLPs on all tokens at once again.

    Raises:
        NotReversibleError: where the layers of the model cannot be found.
        ValueError: for fewer than 1 token, layers whose MLP is not known, MLPs that do not treat every token apart in a
            known way, such as mixtures of experts, or those whose forward another library has replaced.

    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"A tile is at least 1 token, not {tokens}.")
    if tokens is None:
        for module in model.modules():
            if "tokens_in_tile" in vars(module):
                del module.tokens_in_tile
                # Where accelerate has wrapped it meanwhile, it stays and hands every call on.
                if isinstance(module.forward, StandIn):
                    del module.forward
        return
    mlps = {index: _find_mlp(layer) for index, layer in enumerate(find_stack(model).layers)}
    for mlp in mlps.values():
        if "tokens_in_tile" not in vars(mlp):
            refuse_replaced(mlp, "call set_mlp_tiles first (before accelerate's dispatch or hooks).")
    for index, mlp in mlps.items():
        if "forward" not in vars(mlp):
            mlp.forward = StandIn(_tiled_forward, mlp, index)
        mlp.tokens_in_tile = tokens


def _tiled_forward(mlp: Any, layer: int, hidden: Tensor) -> Tensor:
    """Return the output, (..., width), of the MLP of a layer, which says in `tokens_in_tile` how large a tile is."""
    forward = partial(type(mlp).forward, mlp)
    tokens: int | None = getattr(mlp, "tokens_in_tile", None)
    if tokens is None:
        result: Tensor = forward(hidden)
        return result
    # One long sequence: some MLPs take nothing without a batch dimension.
    tiles = hidden.reshape(1, -1, hidden.shape[-1]).split(tokens, dim=1)
    return torch.cat([_tile(forward, layer, tile) for tile in tiles], dim=1).view(hidden.shape)


def _tile(forward: Callable[[Tensor], Tensor], layer: int, tile: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(tile)
    if torch.compiler.is_compiling():
        # The weights are inputs of the compiled graph, which autograd holds to their versions.
        return checkpoint(forward, tile, use_reentrant=False)
    return checkpointed(f"an MLP tile of layer {layer}", forward, tile)


def _find_mlp(layer: nn.Module) -> Any:
    """Return the MLP of a layer; raise ValueError where it is not known, or not known to treat every token apart."""
    name = type(layer).__name__
    layout = find_layout(layer)
    if layout is None:
        raise ValueError(f"Where the MLP of {name} lies is not known; give its layout to revformers.register_layout.")
    mlp = getattr(layer, layout.mlp.module)
    if isinstance(mlp, nn.Linear):
        raise ValueError(f"The MLP of {name} is no module of its own, so it cannot be evaluated in tiles.")
    for part in mlp.modules():
        if isinstance(part, nn.ModuleList) or (any(True for _ in part.parameters(recurse=False)) and not _known(part)):
            raise ValueError(
                f"The MLP of {name} has a part, {type(part).__name__}, that is not known to treat every token apart "
                f"(mixtures of experts do not), so it cannot be evaluated in tiles."
            )
    return mlp


def _known(part: nn.Module) -> bool:
    """Whether a module with parameters of its own is a product with a matrix, a norm or an activation function."""
    return isinstance(part, (nn.Linear, Conv1D)) or type(part).__name__.endswith(("Norm", "Activation"))
