"""What the commands that read a batch do with their model: its device, the seed, a sequence's length, random tokens."""

import math
from typing import TYPE_CHECKING, Any

from revformers.errors import UserError, counted, require

if TYPE_CHECKING:
    from torch import Tensor


def move(model: Any, device: str) -> None:
    """Move `model` to a device.

    Raises:
        UserError: if PyTorch cannot use it, or it is "meta", where tensors have no values.

    """
    if device.partition(":")[0] == "meta":
        raise UserError(f"Tensors on the device {device!r} have no values; name a device that computes, such as cpu.")
    try:
        model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"PyTorch cannot use the device {device!r} here: {error}") from error


def set_seed(seed: int) -> None:
    """Seed PyTorch.

    Raises:
        UserError: for a seed that is negative or exceeds 63 bits, which NumPy or PyTorch refuse.

    """
    import torch

    require(0 <= seed < 2**63, "--seed", "a whole number from 0 to 2^63 - 1", seed)
    torch.manual_seed(seed)


def sequence_length(model: Any, asked: int | None, default: int, least: int) -> int:
    """Return the tokens of a sequence: what was asked for, or `default`, or the model's maximum if that is smaller.

    Raises:
        UserError: for fewer than `least` tokens, or more than the model reads.

    """
    longest = getattr(model.config, "max_position_embeddings", None) or math.inf
    length = int(min(default, longest)) if asked is None else asked
    if length < least:
        raise UserError(f"A sequence needs at least {counted(least, 'token')}; raise --length, which is {length}.")
    if length > longest:
        raise UserError(f"The model reads at most {longest} tokens; lower --length, which is {length}.")
    return length


def random_tokens(model: Any, sequences: int, length: int) -> "Tensor":
    """Return random tokens of the model's vocabulary, int64[sequences, length], on its device."""
    import torch

    return torch.randint(model.config.get_text_config().vocab_size, (sequences, length)).to(model.device)
