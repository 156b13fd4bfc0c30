"""The training of a model at hand, as the planner describes one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from revformers.checkpoints.model_config import unmark_config
from revformers.models.batch import inputs_of
from revformers.models.discovery import unwrap
from revformers.setup import Optimizer, Training, Workload


def workload_of(model: nn.Module, batch: Mapping[str, Any], optimizer: Optimizer) -> tuple[Workload, tuple[str, ...]]:
    """Return the training of `model` on batches of this shape, as the planner describes it, and what that leaves out.

    Raises:
        TypeError: if the batch is no mapping.
        ValueError: if the planner cannot describe it.

    """
    ids, mask = inputs_of(batch, torch.device("meta")).get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        raise ValueError('A batch holds "input_ids", int64[batch, tokens], whose shape is planned for.')
    dtype = next(value.dtype for value in unwrap(model).parameters() if value.is_floating_point())
    if dtype not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled(next(model.parameters()).device.type):
        raise ValueError(
            f"Only steps in float32 or in bfloat16 without autocast can be planned, not in "
            f"{str(dtype).removeprefix('torch.')}; load the model with dtype=torch.bfloat16."
        )
    trained = [parameter.requires_grad for parameter in model.parameters()]
    adapters = list(getattr(model, "peft_config", {}).values())
    remarks: list[str] = []
    rank = next((adapter.r for adapter in adapters if getattr(adapter, "r", None)), 16)
    if adapters:
        remarks.append(f"Activations and time are those of LoRA of rank {rank} on all linear layers.")
    if not adapters and not all(trained):
        remarks.append("The time and the activations are those of training all weights, also the frozen ones.")
    if isinstance(mask, Tensor) and not mask.is_meta and not mask.all():
        remarks.append("The mask of padding, up to tokens x tokens numbers a sequence in attention, is not counted.")
    ordinary = copy.deepcopy(unwrap(model).config)
    unmark_config(ordinary)
    workload = Workload(
        ordinary,
        batch_size=ids.shape[0],
        sequence_length=ids.shape[1],
        precision="float32" if dtype == torch.float32 else "bfloat16",
        head="auto",
        optimizer=optimizer,
        training=_training(model) if adapters else "full",
        rank=rank,
    )
    return workload, tuple(remarks)


def _training(model: nn.Module) -> Training:
    return "qlora" if any(type(value).__name__ == "Params4bit" for value in model.parameters()) else "lora"
