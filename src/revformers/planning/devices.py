"""Machines that train, and the peak speeds of graphics processors from data sheets; training reaches less."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Peak speeds of one graphics processor.

    Attributes:
        bfloat16: dense matrix products in bfloat16 with float32 accumulation, operations per second.
        float32: float32 operations per second without TF32, which is off by default in PyTorch.
        memory: bandwidth of the device's own memory, bytes per second.
        link: bandwidth to the host in one direction, bytes per second.

    """

    bfloat16: float
    float32: float
    memory: float
    link: float

    def operations(self, dtype: torch.dtype) -> float:
        """Return the operations per second in `dtype`."""
        return self.bfloat16 if dtype == torch.bfloat16 else self.float32


@dataclass(frozen=True)
class Machine:
    """A graphics processor and the host that it is attached to.

    Attributes:
        device: speeds of the graphics processor.
        memory: memory of the graphics processor, bytes.
        host_memory: memory that the host has for activations, bytes; None if it is not known.

    """

    device: Device
    memory: int
    host_memory: int | None = None


DEVICES = {
    # A100 80 GB data sheet (2188504, May 2022), SXM; PCIe 4.
    "a100": Device(bfloat16=312e12, float32=19.5e12, memory=2.039e12, link=64e9 / 2),
    # H100 data sheet, SXM; PCIe 5. The sheet states bfloat16 with sparsity.
    "h100": Device(bfloat16=1979e12 / 2, float32=67e12, memory=3.35e12, link=128e9 / 2),
    # H200 data sheet (3367400, July 2024), SXM; PCIe 5. The sheet states bfloat16 with sparsity.
    "h200": Device(bfloat16=1979e12 / 2, float32=67e12, memory=4.8e12, link=128e9 / 2),
    # L4 data sheet; PCIe 4. The sheet states bfloat16 with sparsity.
    "l4": Device(bfloat16=242e12 / 2, float32=30.3e12, memory=0.3e12, link=64e9 / 2),
    # White paper on the Ada architecture (2.01), appendix A. Retailers state the link: PCIe 4 with 16 lanes.
    "rtx4090": Device(bfloat16=165.2e12, float32=82.6e12, memory=1.008e12, link=64e9 / 2),
}
"""All are made by NVIDIA. A figure with sparsity is twice the dense one, and a data sheet's link bandwidth is the sum
of both directions. The figures come from publications that quote the data sheets; the originals were not available."""


def speeds_of(device: torch.device) -> tuple[Device, str | None]:
    """Return the speeds of a device, and a remark if those of an H100 stand for it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type.upper()}"
    words = re.findall(r"[a-z0-9]+", name.lower().replace("rtx ", "rtx"))
    for known, speeds in DEVICES.items():
        if known in words:
            return speeds, None
    return DEVICES["h100"], f"Times are those of an H100, as there is no data sheet of {name}; name one with device=."
