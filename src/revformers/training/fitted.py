"""The settings that fit a memory, and what they are predicted to take."""

from dataclasses import dataclass

from revformers.activations import ActivationPolicy, Budget
from revformers.byte_size import size_in_words
from revformers.dynamics.base import Dynamics
from revformers.errors import counted


@dataclass(frozen=True)
class Settings:
    """One way to train, and what it is predicted to take.

    Attributes:
        activations: the activation policy.
        dynamics: the recurrence.
        mlp_tile: tokens of the batch that an MLP evaluates at a time; None for all at once.
        optimizer_in_backward: whether the optimizer steps inside the backward pass.
        memory: the peak of the device's memory with weights, gradients and optimizer states, bytes.
        host: memory of the host that the step holds, bytes.
        seconds: time of a step by the roofline model, which serves to compare settings.

    """

    activations: ActivationPolicy
    dynamics: Dynamics
    mlp_tile: int | None
    optimizer_in_backward: bool
    memory: int
    host: int
    seconds: float

    def fits(self, memory: int, host_memory: int) -> bool:
        """Say whether the step fits these bytes of the device and of the host."""
        return self.memory <= memory and self.host <= host_memory

    def __str__(self) -> str:
        """Return the settings in words."""
        policy = self.activations
        parts = [f"budget of {size_in_words(int(policy.size))}" if isinstance(policy, Budget) else str(policy)]
        if self.dynamics.granularity == "branch":
            parts.append("steps by branch")
        if self.mlp_tile is not None:
            parts.append(f"MLPs in tiles of {counted(self.mlp_tile, 'token')}")
        if self.optimizer_in_backward:
            parts.append("the optimizer inside the backward pass")
        return ", ".join(parts)


@dataclass(frozen=True)
class Fitted:
    """What `fit_to_memory` chose.

    Attributes:
        chosen: the settings that the model has now.
        others: what else was predicted and takes less time, memory or host memory than all that is shorter, the
            shortest steps first.
        memory: the memory to fit, bytes.
        host_memory: the host's memory for activations, bytes.
        remarks: what the prediction leaves out of account.

    """

    chosen: Settings
    others: tuple[Settings, ...]
    memory: int
    host_memory: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """Return the choice and the reason as a few lines of text."""
        lines = [
            f"{self.chosen}: a predicted peak of {size_in_words(self.chosen.memory)} of {size_in_words(self.memory)}"
        ]
        if self.chosen.optimizer_in_backward:
            lines.append(
                "Call revformers.training.step_in_backward.step_in_backward(optimizer), and neither accumulate nor "
                "clip gradients."
            )
        for row in self.others:
            verdict = "" if row.fits(self.memory, self.host_memory) else ", does not fit"
            host = f" and {size_in_words(row.host)} of the host" if row.host else ""
            lines.append(
                f"  {row}: {row.seconds / self.chosen.seconds:.2f} times as long, {size_in_words(row.memory)}{host}"
                f"{verdict}"
            )
        return "\n".join([*lines, *self.remarks])
