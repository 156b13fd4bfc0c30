"""Attention outputs of a field, kept so that its second evaluation need not run the attention kernels.

This is selective checkpointing. PyTorch's own, `create_selective_checkpoint_contexts`, requires both evaluations to run
the same list of kernels, including casts of weights, which autocast omits if they are cached. Here only the attention
kernels have to be the same.
"""

from collections import deque
from typing import Any

from torch import Tensor

from revformers.engine.field import Field, OtherEvaluationError
from revformers.errors import RebuildMismatchError
from revformers.private_api import ATTENTION_KERNELS, EveryKernel, named_arguments, operations_of, version_of


class AttentionKeeper:
    """A field that keeps the outputs of its attention kernels from its first evaluation for its second.

    One object serves one step of one forward pass. The second evaluation releases the outputs, so a third one, for a
    retained graph, runs the kernels again. The object also counts the operations of the first evaluation.

    Args:
        field: the field to evaluate.
        name: the name of the step in messages.

    Attributes:
        kept_bytes: bytes of the kept outputs.
        operations: floating-point operations of all matrix products and attention, as PyTorch counts them; causal
            masks are not subtracted.
        attention_operations: those of the kept kernels.

    """

    def __init__(self, field: Field, name: str) -> None:
        self.kept_bytes = 0
        self.operations = 0
        self.attention_operations = 0
        self.__wrapped__ = field  # `Situation` finds the weights of the field under this name
        self._name = name[0].upper() + name[1:]
        self._first = True
        self._outputs: deque[_KernelOutput] = deque()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Evaluate the field.

        Raises:
            OtherEvaluationError: if the second evaluation runs other attention kernels than the first.
            RebuildMismatchError: if the output of a kernel was written to.

        """
        if self._first:
            self._first = False
            with EveryKernel(self._observe):
                update = self.__wrapped__(hidden)
            for output in self._outputs:
                output.detach()
            return update
        if not self._outputs:
            return self.__wrapped__(hidden)
        # The next evaluation must not use outputs that an interrupted one has left over.
        self._outputs, outputs = deque(), self._outputs

        def run(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if not _is_kept(kernel, arguments, keywords):
                return kernel(*arguments, **keywords)
            if not outputs:
                raise OtherEvaluationError("ran more attention kernels in the backward pass than in the forward pass")
            output = outputs.popleft()
            return output.value_of(kernel.name(), self._name)

        with EveryKernel(run):
            return self.__wrapped__(hidden)

    def forget(self) -> None:
        """Release the kept outputs."""
        self._outputs.clear()

    def _observe(self, kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        output = kernel(*arguments, **keywords)
        operations = operations_of(kernel, arguments, keywords, output)
        self.operations += operations
        if _is_kept(kernel, arguments, keywords):
            self.attention_operations += operations
            self.kept_bytes += sum(value.untyped_storage().nbytes() for value in output if isinstance(value, Tensor))
            self._outputs.append(_KernelOutput(kernel.name(), output))
        return output


class _KernelOutput:
    """The output of a kernel, a tuple whose tensors must not be written to afterwards.

    The tape compares the kernel's inputs in the second evaluation, because autograd saves them.
    """

    def __init__(self, kernel: str, values: tuple[Any, ...]) -> None:
        self._kernel = kernel
        self._values = values
        self._versions = [version_of(value) for value in values if isinstance(value, Tensor)]

    def detach(self) -> None:
        """Release the autograd graph of the tensors."""
        self._values = tuple(_detached(value) for value in self._values)

    def value_of(self, kernel: str, name: str) -> tuple[Any, ...]:
        """Return the values for another call of the kernel, detached so that autograd makes a new graph of them."""
        if kernel != self._kernel:
            raise OtherEvaluationError(f"ran {kernel} where the forward pass ran {self._kernel}")
        if [version_of(value) for value in self._values if isinstance(value, Tensor)] != self._versions:
            raise RebuildMismatchError(
                f"{name} writes into the output of {kernel}, which can therefore not be kept; train with "
                f"revformers.Rebuild() or revformers.Checkpoint() instead of a budget."
            )
        return tuple(_detached(value) for value in self._values)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _is_kept(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether to keep the output of a kernel: only of fused attention, because eager attention's are quadratic."""
    # A kernel that draws random numbers has to run again, so that later kernels draw the same numbers.
    return kernel.name() in ATTENTION_KERNELS and not named_arguments(kernel, arguments, keywords).get("dropout_p")
