"""The result of a verification of gradients."""

from dataclasses import dataclass
from typing import Literal

from revformers.errors import counted


@dataclass(frozen=True)
class GradientReport:
    """The comparison of the rebuilt gradient of one step with the stored one.

    Attributes:
        bit_exact: whether the losses and every parameter's gradient are equal to the bit; a NaN equals a NaN.
        decided: whether the comparison tells rebuilt activations from stored ones. False if the gradients differ and
            those of two passes with stored activations do so as well, at equal losses, because a kernel of the backward
            pass varies from call to call and PyTorch has no deterministic one in its place.
        kernels: "as set" by the caller, or "deterministic" if PyTorch's deterministic kernels were used because the
            gradients differed and the losses did not.
        varying: the names of the parameters whose gradients differ between two passes with stored activations and the
            kernels as set, largest difference first; empty if that was not tried, because the gradients were equal or
            the losses were not.
        missing: the operation without a deterministic form that left the comparison undecided, as PyTorch names it.
        max_relative_error: the largest difference of any gradient entry, relative to the largest entry of the whole
            gradient. All parameters share one scale, because some have a true gradient of zero (OPT's key bias).
        differing: the names of the parameters whose gradients differ, largest difference first.
        parameters: number of parameters that have a gradient; with the first version of FSDP, of those of which this
            process holds a part.
        entries: number of entries of these gradients; with the first version of FSDP, of the parts in this process.
        loss: the loss with stored activations, in this process.
        rebuilt_loss: the loss with rebuilt activations, in this process.
        recurrence: the dynamics in one line.
        states: the format of the states in both passes, e.g. "32-bit integers up to 32,512 with 16 binary
            digits after the point".
        dtype: the dtype of the parameters, e.g. "float32".
        device: the device of the parameters, e.g. "cpu".

    """

    bit_exact: bool
    decided: bool
    kernels: Literal["as set", "deterministic"]
    varying: tuple[str, ...]
    missing: str
    max_relative_error: float
    differing: tuple[str, ...]
    parameters: int
    entries: int
    loss: float
    rebuilt_loss: float
    recurrence: str
    states: str
    dtype: str
    device: str

    def __str__(self) -> str:
        """Return the report as a few lines of text."""
        kernels = f"  kernels             {self._kernels}\n" if self.varying or self.kernels == "deterministic" else ""
        return (
            f"{self._verdict}\n"
            f"  dynamics            {self.recurrence}\n"
            f"  states              {self.states}\n"
            f"  compared            {self.parameters} parameters, {self.entries:,} numbers, {self.dtype} on "
            f"{self.device}\n"
            f"{kernels}"
            f"  max relative error  {self.max_relative_error:.3g}\n"
            f"  loss                {self.loss:.6f} stored, {self.rebuilt_loss:.6f} rebuilt"
        )

    @property
    def _kernels(self) -> str:
        variation = f"two passes with stored activations differ in {counted(len(self.varying), 'parameter')}"
        if not self.varying:
            return (
                "PyTorch's deterministic ones, because with the usual ones the gradients differ and the losses do not"
            )
        if self.kernels == "deterministic":
            return f"PyTorch's deterministic ones, because with the usual ones {variation}"
        return f"they vary: {variation}"

    @property
    def _verdict(self) -> str:
        if self.bit_exact:
            return "rebuilt gradients equal stored gradients to the bit"
        if not self.decided:
            reason = f"PyTorch has no deterministic form of {self.missing}" if self.missing else "its kernels vary"
            return f"rebuilt gradients CANNOT BE COMPARED with stored gradients to the bit: {reason}"
        if not self.differing:
            return "the loss with rebuilt activations DIFFERS from the loss with stored ones, and gradients do not"
        return (
            f"rebuilt gradients DIFFER from stored gradients in {counted(len(self.differing), 'parameter')}, at worst "
            f"{', '.join(self.differing[:3])}"
        )
