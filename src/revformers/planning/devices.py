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
    # A100 80 GB data sheet (2188504, May 2022), SXM; PCIe 4.
    "a100": Device(bfloat16=312e12, float32=19.5e12, memory=2.039e12, link=64e9 / 2),
    # H100 data sheet, SXM; PCIe 5. It gives bfloat16 with sparsity.
    "h100": Device(bfloat16=1979e12 / 2, float32=67e12, memory=3.35e12, link=128e9 / 2),
    # H200 data sheet (3367400, July 2024), SXM; PCIe 5. It gives bfloat16 with sparsity.
    "h200": Device(bfloat16=1979e12 / 2, float32=67e12, memory=4.8e12, link=128e9 / 2),
    # L4 data sheet; PCIe 4. It gives bfloat16 with sparsity.
    "l4": Device(bfloat16=242e12 / 2, float32=30.3e12, memory=0.3e12, link=64e9 / 2),
    # White paper on the Ada architecture (2.01), appendix A; the link, PCIe 4 with 16 lanes, as sellers state it.
    "rtx4090": Device(bfloat16=165.2e12, float32=82.6e12, memory=1.008e12, link=64e9 / 2),
}
"""All are NVIDIA's. Sparsity doubles a figure, and data sheets add up both ways of a link. They were read as others
quote them: the originals were not at hand."""
