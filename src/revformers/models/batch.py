"""A batch as the arguments of a model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def inputs_of(batch: Any, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a model in a batch, tensors on `device`; raise TypeError if the batch is no mapping."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f'A batch is a mapping of the model\'s arguments, such as {{"input_ids": tokens}}, not '
            f"{type(batch).__name__}."
        )
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
