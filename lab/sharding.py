"""Tensor parallelism of a small Llama by PyTorch's plans, over two processes of a CPU."""

from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROWS = ("self_attn.o_proj", "mlp.down_proj")


def tensor_parallel(model: Any, head: ParallelStyle | None = None) -> Any:
    """Spread the projections and the head of a Llama over two processes, in place, and return it.

    Args:
        model: the model.
        head: of its head; by default the logits are whole in every process.

    """
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        columns = {name: ColwiseParallel() for name in COLUMNS}
        parallelize_module(layer, mesh, columns | {name: RowwiseParallel() for name in ROWS})
    return parallelize_module(model, mesh, {"lm_head": head or ColwiseParallel(output_layouts=Replicate())})


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be spread over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
