"""The optimizer's step inside the backward pass: every gradient is used as soon as it is complete, and freed.

So the gradients of all parameters never exist together (Lv et al., arXiv 2306.09782). The optimizer is an ordinary one:
its state, its checkpoints and its learning rate schedule stay what they are. For one parameter's step the hook shows it
no other parameter. PyTorch's own `_apply_optimizer_in_backward` is private and makes an optimizer of each parameter,
which no scheduler or checkpoint of a trainer knows.

When is a parameter stepped? Autograd calls the hook once in a backward pass, after every use of the parameter in the
graph has given its part: tied weights after the last one, an MLP that the next layer evaluates too after both. A layer
is rebuilt before any of its uses gives anything, so a layer that is still to be rebuilt has the weights of the forward
pass. A checkpointed layer may step what it adds after everything that it keeps tensors for, such as a last bias, before
it is evaluated again; but then nothing that it keeps depends on it.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState, TrainingArguments

from revformers.errors import UserError, as_user_error

NOT_BY_PARAMETER = ("LBFGS", "CPUOffloadOptimizer")
"""Optimizers of torch.optim and torchao.optim that need all gradients, or have hooks of their own to wait for them."""


class StepInBackward(TrainerCallback):
    """Steps the Trainer's optimizer in every backward pass; the Trainer's own step then finds no gradient.

    It is the same step to the bit. What needs all gradients first cannot be had; see `check_step_in_backward`.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Register the hooks.

        Raises:
            UserError: for an optimizer that is not known to step every parameter by itself.

        """
        optimizer = kwargs["optimizer"]
        with as_user_error():
            self._hooks = step_in_backward(getattr(optimizer, "optimizer", optimizer))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def step_in_backward(optimizer: Optimizer) -> list[RemovableHandle]:
    """Let an optimizer step every one of its parameters in the backward pass, and return the hooks.

    Args:
        optimizer: of torch.optim or torchao.optim, which step every parameter by itself.

    Raises:
        ValueError: for another optimizer.

    """
    kind = type(optimizer)
    known = isinstance(optimizer, Optimizer) and kind.__module__.startswith(("torch.optim", "torchao.optim"))
    if not known or kind.__name__ in NOT_BY_PARAMETER:
        raise ValueError(
            f"The optimizer {kind.__module__}.{kind.__name__} is not known to step every parameter by itself, so it "
            f"cannot step in the backward pass; use one of torch.optim or torchao.optim but "
            f"{' and '.join(NOT_BY_PARAMETER)}, such as AdamW."
        )
    for group in optimizer.param_groups:
        dtypes = {parameter.dtype for parameter in group["params"]}
        if kind.__name__ == "Adafactor" and group["eps"][0] is None and len(dtypes) > 1:
            raise ValueError(
                f"Adafactor takes eps[0] from the first parameter of a group, which holds {len(dtypes)} dtypes, so a "
                f"step by parameter would be another one; give it an eps[0], or a group for each dtype."
            )
    group_of = {
        parameter: number for number, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }

    def step(parameter: Tensor) -> None:
        groups = optimizer.param_groups
        # The group is read now: schedulers write to it, and loading a state puts another one in its place.
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
            raise UserError(f"training.optimizer_in_backward uses every gradient as soon as it is there; {remedy}.")
