"""Keeping what the attention kernels of a field returned, so that its second evaluation need not run them.

PyTorch's selective checkpointing does the keeping: in the first evaluation it notes the outputs of the chosen kernels,
in the second it returns them. They are the same bits, so the field's result is the same as well.
"""

import contextlib
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from revformers.field import Field

KERNELS = {
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "flex_attention",
}
"""The fused kernels. Eager attention has none: it is matrix products and a softmax, whose results are quadratic."""


class AttentionKeeper:
    """A field that keeps the outputs of its attention kernels from its first evaluation for its second.

    One object lives for one step of one forward pass. After the second evaluation nothing is kept, so that a third one,
    of a retained graph, runs the kernels again. Counts what its first evaluation computed.

    Attributes:
        kept_bytes: what the kept outputs take.
        operations: floating-point operations of all matrix products and attention, as PyTorch counts them; causal
            masks are not subtracted.
        attention_operations: those of the kept kernels.

    """

    def __init__(self, field: Field) -> None:
        self.kept_bytes = 0
        self.operations = 0
        self.attention_operations = 0
        self._field = field
        self._keeping, self._replaying = create_selective_checkpoint_contexts(self._observe)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Evaluate the field."""
        context = self._keeping or self._replaying or contextlib.nullcontext()
        if self._keeping:
            self._keeping = None
        else:
            self._replaying = None
        with context:
            return self._field(hidden)

    def forget(self) -> None:
        """Let go of what was kept."""
        self._replaying = None

    def _observe(self, context: Any, kernel: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
        output = context.op_output
        name = kernel.name()
        operations = _operations(kernel, arguments, keywords, output)
        self.operations += operations
        # A kernel that draws random numbers has to run again: what follows it draws from where it left off.
        if name not in KERNELS or _dropout(kernel, arguments, keywords):
            return CheckpointPolicy.PREFER_RECOMPUTE
        self.attention_operations += operations
        self.kept_bytes += sum(value.untyped_storage().nbytes() for value in output if isinstance(value, Tensor))
        return CheckpointPolicy.MUST_SAVE


def _operations(kernel: Any, arguments: Any, keywords: Any, output: Any) -> int:
    if kernel.name() in ("aten::_scaled_dot_product_flash_attention_for_cpu",):
        return sdpa_flop_count(*(argument.shape for argument in arguments[:3]))
    count = flop_registry.get(getattr(kernel, "overloadpacket", kernel))
    return int(count(*arguments, **keywords, out_val=output)) if count else 0


def _dropout(kernel: Any, arguments: Any, keywords: Any) -> float:
    """Return the probability of dropout that a kernel was called with."""
    schema = getattr(kernel, "_schema", None)
    values = dict(zip((argument.name for argument in schema.arguments), arguments, strict=False)) if schema else {}
    return float((values | keywords).get("dropout_p", 0.0))
