"""Speeds of graphics processors, as their makers' data sheets give them; what training reaches is less."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Peak speeds.

    Attributes:
        bfloat16: dense matrix products in bfloat16 with float32 accumulation, operations a second.
        float32: operations a second in float32 without TF32, which PyTorch leaves off.
        memory: bytes a second from and to its own memory.
        link: bytes a second to the host, one way.

    """

    bfloat16: float
    float32: float
    memory: float
    link: float

    def operations(self, dtype: torch.dtype) -> float:
        """Return the operations a second in `dtype`."""
        return self.bfloat16 if dtype == torch.bfloat16 else self.float32


DEVICES = {
    "a100": Device(312e12, 19.5e12, 2.04e12, 32e9),
    "h100": Device(989e12, 67e12, 3.35e12, 64e9),
    "h200": Device(989e12, 67e12, 4.8e12, 64e9),
    "l4": Device(121e12, 30.3e12, 0.3e12, 32e9),
    "rtx4090": Device(165e12, 82.6e12, 1.01e12, 32e9),
}
"""A100 80 GB, H100 and H200 are the SXM modules; all links are PCIe."""
