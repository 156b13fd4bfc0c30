"""Tiled MLPs: the inner activations of an MLP exist for a few tokens at a time, in both passes.

An MLP is several times as wide as the residual stream, so its inner activations are most of the memory that one layer
needs. It processes every token independently, so it can be evaluated tile by tile. Each tile is checkpointed: only its
input is kept, and the backward pass evaluates one tile again at a time.
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
    """Evaluate the MLP of every layer on tiles of `tokens` tokens, in place, in an ordinary or a reversible model.

    Each training step evaluates every MLP once more. Rebuilt gradients still equal stored ones to the bit. The
    gradients of the MLPs' weights differ by rounding from those without tiles, because they are summed tile by tile in
    the dtype of the weights; use few tiles in bfloat16.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokens: tokens of the batch per tile; None removes the tiles.

    Raises:
        NotReversibleError: if the layers of the model cannot be found, or a layout does not fit them.
        TypeError: if `tokens` is not an int.
        ValueError: if `tokens` is below 1, or the MLP of a layer is unknown, is not known to process every token
            independently (mixtures of experts do not), or has a forward that another library has replaced.

    """
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int)):
        raise TypeError(f"A tile is a whole number of tokens, not {tokens!r}.")
    if tokens is not None and tokens < 1:
        raise ValueError(f"A tile is at least 1 token, not {tokens}.")
    if tokens is None:
        for module in model.modules():
            if "tokens_in_tile" in vars(module):
                del module.tokens_in_tile
                # If accelerate has wrapped it in the meantime, it stays and forwards every call.
                if isinstance(module.forward, StandIn):
                    del module.forward
        return
    for index, mlp in enumerate(mlps_for_tiles(model)):
        if "forward" not in vars(mlp):
            mlp.forward = StandIn(_tiled_forward, mlp, index)
        mlp.tokens_in_tile = tokens


def mlps_for_tiles(model: nn.Module) -> list[Any]:
    """Return the MLP of every layer, in order, without a change to the model.

    Raises:
        NotReversibleError, ValueError: if the MLPs cannot be evaluated in tiles; see `set_mlp_tiles`.

    """
    mlps = [_find_mlp(layer) for layer in find_stack(model).layers]
    for mlp in mlps:
        if "tokens_in_tile" not in vars(mlp):
            refuse_replaced(mlp, "call set_mlp_tiles first (before accelerate's dispatch or hooks).")
    return mlps


def _tiled_forward(mlp: Any, layer: int, hidden: Tensor) -> Tensor:
    """Return the output, (..., width), of the MLP of a layer, whose `tokens_in_tile` is the size of a tile."""
    forward = partial(type(mlp).forward, mlp)
    tokens: int | None = getattr(mlp, "tokens_in_tile", None)
    if tokens is None:
        result: Tensor = forward(hidden)
        return result
    # One long sequence, because some MLPs require a batch dimension.
    tiles = hidden.reshape(1, -1, hidden.shape[-1]).split(tokens, dim=1)
    return torch.cat([_tile(forward, layer, tile) for tile in tiles], dim=1).view(hidden.shape)


def _tile(forward: Callable[[Tensor], Tensor], layer: int, tile: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(tile)
    if torch.compiler.is_compiling():
        # The weights are inputs of the compiled graph, so autograd checks their versions.
        return checkpoint(forward, tile, use_reentrant=False)
    return checkpointed(f"an MLP tile of layer {layer}", forward, tile)


def _find_mlp(layer: nn.Module) -> Any:
    """Return the MLP of a layer; raise ValueError if it is not known, or not known to process tokens independently."""
    name = type(layer).__name__
    layout = find_layout(layer)
    if layout is None:
        raise ValueError(f"The MLP of {name} is not known; give its layout to revformers.register_layout.")
    layout.check(layer)
    mlp = getattr(layer, layout.mlp.module)
    if isinstance(mlp, nn.Linear):
        raise ValueError(f"The MLP of {name} is not a separate module, so it cannot be evaluated in tiles.")
    for part in mlp.modules():
        if isinstance(part, nn.ModuleList) or (any(True for _ in part.parameters(recurse=False)) and not _known(part)):
            raise ValueError(
                f"The MLP of {name} has a part, {type(part).__name__}, that is not known to process every token "
                f"independently (mixtures of experts do not), so it cannot be evaluated in tiles."
            )
    return mlp


def _known(part: nn.Module) -> bool:
    """Whether a module with parameters is a linear map, a norm or an activation function."""
    return isinstance(part, (nn.Linear, Conv1D)) or type(part).__name__.endswith(("Norm", "Activation"))
