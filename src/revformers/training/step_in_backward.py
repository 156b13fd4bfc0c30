"""The optimizer step inside the backward pass: every gradient is used as soon as it is complete, and then freed.

The gradients of all parameters therefore never exist together (Lv et al., arXiv 2306.09782). The optimizer is an
ordinary one: its state, its checkpoints and its learning rate schedule do not change. For each parameter the hook calls
the optimizer with that parameter alone. PyTorch's own `_apply_optimizer_in_backward` is private and creates one
optimizer per parameter, which no scheduler or checkpoint of a trainer knows.

Autograd calls the hook once in a backward pass, when every use of the parameter in the graph has contributed its
gradient: for tied weights after the last use, for an MLP that the next layer evaluates as well after both. A layer is
rebuilt before any of its uses contributes, so a layer that is still to be rebuilt has the weights of the forward pass.
A checkpointed layer may update a parameter that none of its saved tensors depend on, such as the last bias, before it
is evaluated again; the saved tensors do not change.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState, TrainingArguments

from revformers.errors import UserError, as_user_error

NOT_BY_PARAMETER = ("LBFGS", "CPUOffloadOptimizer")
"""Optimizers of torch.optim and torchao.optim that need all gradients at once, or have hooks of their own."""


class StepInBackward(TrainerCallback):
    """Steps the Trainer's optimizer in every backward pass; the Trainer's own step then finds no gradients.

    The updates are the same to the bit. For arguments that need all gradients, see `check_step_in_backward`.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Register the hooks.

        Raises:
            UserError: for an optimizer that is not known to update every parameter independently.

        """
        optimizer = kwargs["optimizer"]
        with as_user_error():
            self._hooks = step_in_backward(getattr(optimizer, "optimizer", optimizer))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def step_in_backward(optimizer: Optimizer) -> list[RemovableHandle]:
    """Let an optimizer update each of its parameters in the backward pass, and return the hooks.

    Args:
        optimizer: an optimizer of torch.optim or torchao.optim, which update every parameter independently.

    Raises:
        ValueError: for another optimizer.

    """
    kind = type(optimizer)
    known = isinstance(optimizer, Optimizer) and kind.__module__.startswith(("torch.optim", "torchao.optim"))
    if not known or kind.__name__ in NOT_BY_PARAMETER:
        raise ValueError(
            f"The optimizer {kind.__module__}.{kind.__name__} is not known to update every parameter independently, so "
            f"it cannot step in the backward pass; use one of torch.optim or torchao.optim, such as AdamW, except "
            f"{' and '.join(NOT_BY_PARAMETER)}."
        )
    for group in optimizer.param_groups:
        dtypes = {parameter.dtype for parameter in group["params"]}
        if kind.__name__ == "Adafactor" and group["eps"][0] is None and len(dtypes) > 1:
            raise ValueError(
                f"Adafactor takes eps[0] from the first parameter of a group, which holds {len(dtypes)} dtypes, so "
                f"steps by parameter would differ; give it an eps[0], or a group for each dtype."
            )
    group_of = {
        parameter: number for number, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }

    def step(parameter: Tensor) -> None:
        groups = optimizer.param_groups
        # The group is read at each step: schedulers write to it, and loading a state replaces it.
        optimizer.param_groups = [{**groups[group_of[parameter]], "params": [parameter]}]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups
        parameter.grad = None

    return [parameter.register_post_accumulate_grad_hook(step) for parameter in group_of if parameter.requires_grad]


def check_step_in_backward(arguments: TrainingArguments) -> None:
    """Raise UserError for arguments that need all gradients before the first step."""
    remedies = {
        "set training.gradient_accumulation_steps to 1": arguments.gradient_accumulation_steps > 1,
        "set training.max_grad_norm to 0, as the norm of all gradients is not known in time": arguments.max_grad_norm,
        "set training.precision to bfloat16 or float32": arguments.fp16,
        "train in one process on one device": arguments.world_size > 1 or arguments.n_gpu > 1,
    }
    for remedy, needed in remedies.items():
        if needed:
            raise UserError(f"training.optimizer_in_backward uses every gradient as soon as it is complete; {remedy}.")
