"""How often a tensor was written to, which PyTorch counts."""

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
