"""The loss of a causal language model, computed chunk by chunk instead of from the logits of all tokens.

`set_head_loss` replaces the forward of the model on the object. When it is called with labels, the model's own forward
runs once, for the logits of one token per sequence, and a replaced loss function computes the loss of `HeadLoss` from
the last hidden states. Terms that the model adds to its loss, such as the auxiliary loss of a mixture of experts, stay.
The gradients of a chunk are computed in the forward pass (`revformers.head.chunked_sum`), so that only one chunk's
logits exist at a time and the head is evaluated once.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from revformers.errors import NotReversibleError
from revformers.head.chunked_sum import chunked_sum
from revformers.head.losses import MASKED, cross_entropy_sum, divergence_sum
from revformers.head.teacher import Teacher
from revformers.models.discovery import find_stack, unwrap
from revformers.models.hidden import InseparableHeadError, LastHiddenState, own_forward
from revformers.models.stand_in import StandIn, refuse_replaced
from revformers.private_api import calls_loss_function, is_partitioned

Head = Literal["auto", "chunked", "own"]
"""How a command computes the cross-entropy: "chunked", from the logits of a few tokens at a time; "own", by the model
itself, from those of all tokens; "auto", chunked if the model supports it, otherwise own with a warning."""


@dataclass(frozen=True)
class HeadLoss:
    """The training loss of a model; in evaluation mode it is the plain cross-entropy, so that losses are comparable.

    Attributes:
        cross_entropy: weight of the cross-entropy of the labels.
        distillation: weight of T^2 KL(teacher || student), on the tokens that are not masked in the labels.
        temperature: T.
        teacher: the network to learn from.
        chunk: tokens per chunk; None stands for a quarter of the width, between 64 and 1024.
        required: whether to refuse a model whose head cannot be applied to a few tokens at a time, or that has another
            loss; otherwise such a model computes its own loss, and a warning says why.

    """

    cross_entropy: float = 1.0
    distillation: float = 0.0
    temperature: float = 1.0
    teacher: Teacher | None = None
    chunk: int | None = None
    required: bool = True

    def __post_init__(self) -> None:
        if not (self.cross_entropy >= 0 and self.distillation >= 0 and self.cross_entropy + self.distillation > 0):
            raise ValueError(
                f"The weights of a HeadLoss are at least 0 and not both 0, not cross_entropy={self.cross_entropy} and "
                f"distillation={self.distillation}."
            )
        if self.distillation > 0 and self.teacher is None:
            raise ValueError("Distillation needs a teacher; give HeadLoss one, such as FrozenCopy(model).")
        if not self.temperature > 0:
            raise ValueError(f"The temperature of a HeadLoss is above 0, not {self.temperature}.")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"The chunk of a HeadLoss is at least 1 token, not {self.chunk}.")
        if not self.required and self.differs_in_training:
            raise ValueError("Only the plain cross-entropy can be left to the model; set required=True.")

    @property
    def differs_in_training(self) -> bool:
        """Whether it is another loss in training than the plain cross-entropy."""
        return bool(self.distillation or self.cross_entropy != 1)


def set_head_loss(model: nn.Module, loss: HeadLoss | None) -> None:
    """Make a model compute this loss instead of its own when it is called with labels, in place.

    ``set_head_loss(model, HeadLoss())`` is useful for every model that is trained on labels: it gives the same loss and
    gradients up to rounding, without the logits of all tokens.

    Labels are shifted, masked (-100) and averaged as in transformers, including ``num_items_in_batch``; masked tokens
    never reach the head. If all tokens of a batch are masked, the loss is 0; in transformers it is NaN. The output has
    no logits, and the loss has no second derivative. Calls without labels do not change.

    Args:
        model: a causal language model of transformers, reversible or ordinary, or a PEFT model around one.
        loss: the loss; None restores the model's own.

    Raises:
        NotReversibleError: if the decoder of the model cannot be found.
        InseparableHeadError: if the head cannot be applied to a few tokens at a time, or the model has another loss.
            Some models are refused only in their first forward pass.
        ValueError: if another library has replaced the model's forward.

    """
    inner = unwrap(model)
    if loss is not None:
        try:
            _check(inner)
        except (NotReversibleError, InseparableHeadError) as error:
            if loss.required:
                raise
            _leave(inner, error)
            return
        if "_head_loss" not in vars(inner):
            refuse_replaced(inner, "call set_head_loss first (before accelerate's dispatch or hooks).")
        if "forward" not in vars(inner):
            inner.forward = StandIn(_head_forward, inner)
        inner._head_loss = loss
    elif "_head_loss" in vars(inner):
        del inner._head_loss
        # If accelerate has wrapped it in the meantime, it stays and forwards every call.
        if isinstance(inner.forward, StandIn):
            del inner.forward


def head_loss(model: nn.Module) -> HeadLoss | None:
    """Return the loss that `set_head_loss` gave to a model; None if it has its own."""
    return vars(unwrap(model)).get("_head_loss")


def observe_head_loss(model: nn.Module, observer: Callable[[], None] | None) -> None:
    """Call `observer` after every forward pass in training mode that computes the head loss, until it is None."""
    inner = unwrap(model)
    vars(inner).pop("_head_loss_observer", None)
    if observer is not None:
        inner._head_loss_observer = observer


def apply_head(model: nn.Module, head: Head, chunk: int | None = None) -> None:
    """Make a model compute its cross-entropy as `head` says, in place; see `Head` and `set_head_loss`."""
    set_head_loss(model, None if head == "own" else HeadLoss(chunk=chunk, required=head == "chunked"))


def _check(model: Any) -> None:
    """Raise NotReversibleError or InseparableHeadError if the model is known not to fit before it runs."""
    find_stack(model)
    parameters = inspect.signature(type(model).forward).parameters
    if "labels" not in parameters or "logits_to_keep" not in parameters:
        raise InseparableHeadError.of(model)
    if model.loss_function is not ForCausalLMLoss or not calls_loss_function(type(model)):
        raise _another_loss(model)


def _leave(model: Any, reason: ValueError) -> None:
    """Restore the model's own loss, and warn."""
    set_head_loss(model, None)
    warnings.warn(f"The loss takes the logits of all tokens at once. {reason}", stacklevel=3)


def _head_forward(model: Any, *arguments: Any, **keywords: Any) -> Any:
    """Stand in for the forward of a model with a head loss."""
    loss = head_loss(model)
    inputs = dict(zip(list(inspect.signature(type(model).forward).parameters)[1:], arguments, strict=False)) | keywords
    if loss is None or inputs.get("labels") is None:
        return type(model).forward(model, *arguments, **keywords)
    return_dict = inputs.pop("return_dict", None)
    try:
        output = _forward(model, loss, inputs)
    except InseparableHeadError as error:
        if loss.required:
            raise
        _leave(model, error)
        return type(model).forward(model, *arguments, **keywords)
    as_object = model.config.return_dict if return_dict is None else return_dict
    return output if as_object else output.to_tuple()


def _forward(model: Any, loss: HeadLoss, inputs: dict[str, Any]) -> Any:
    """Run the model's own forward with `loss` instead of its loss function."""
    asked = inputs.get("logits_to_keep")
    if isinstance(asked, Tensor) or asked:
        raise ValueError("logits_to_keep cannot be combined with labels where the model has a head loss; leave it out.")
    if model.loss_function is not ForCausalLMLoss:
        raise _another_loss(model)
    if any(map(is_partitioned, model.parameters())):
        raise _without_weights(model)
    state = LastHiddenState(model)
    computed = False

    def loss_function(logits: Tensor, labels: Tensor, *_: Any, **options: Any) -> Tensor:
        nonlocal computed
        computed = True
        targets = _targets(labels, **options)
        if targets.shape != state.value.shape[:2]:
            raise InseparableHeadError.of(model)
        counted = targets.flatten() != options.get("ignore_index", MASKED)
        positions = counted.nonzero()[:, 0].to(state.value.device)
        if not len(positions):
            # An empty sum that has a graph, because every rank of a distributed run must run the backward pass.
            return logits[..., :0].float().sum()
        total = _sum(model, loss, inputs, state, targets.flatten().to(positions.device), positions)
        number = options.get("num_items_in_batch")
        if number is None:
            return total / len(positions)
        return total / (number.to(total.device) if isinstance(number, Tensor) else number)

    with state.recorded(), _replaced_loss(model, loss_function):
        output = own_forward(model, inputs | {"logits_to_keep": 1})
    if not computed:
        raise _another_loss(model)
    observer = vars(model).get("_head_loss_observer")
    if observer is not None and model.training:
        observer()
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _targets(labels: Tensor, shift_labels: Tensor | None = None, ignore_index: int = MASKED, **_: Any) -> Tensor:
    """Return the token that each position predicts, or ignore_index: int64[batch, tokens]."""
    if shift_labels is not None:
        return shift_labels
    return nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def _sum(
    model: nn.Module,
    loss: HeadLoss,
    inputs: Mapping[str, Any],
    state: LastHiddenState,
    targets: Tensor,
    positions: Tensor,
) -> Tensor:
    """Return the sum of the weighted losses over the tokens at `positions`, computed chunk by chunk."""
    if not model.training:
        loss = HeadLoss(chunk=loss.chunk)
    head, teacher = state.head, loss.teacher if loss.distillation else None

    def chunk_sum(hidden: Tensor, targets: Tensor, teacher_hidden: Tensor | None = None) -> Tensor:
        logits = head(hidden)
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        if loss.cross_entropy:
            total = total + loss.cross_entropy * cross_entropy_sum(logits, targets)
        if teacher is not None and teacher_hidden is not None:
            divergence = divergence_sum(logits, teacher.logits(teacher_hidden), loss.temperature)
            total = total + loss.distillation * divergence
        return total

    hidden = state.value.flatten(0, 1)[positions]
    others = [targets[positions]]
    if teacher is not None:
        others.append(teacher.hidden(inputs).flatten(0, 1)[positions])
    return chunked_sum(chunk_sum, hidden, *others, chunk=loss.chunk or chunk_of(hidden.shape[-1]))


def chunk_of(width: int) -> int:
    """Return the number of tokens per chunk: a quarter of the width, so that logits are a quarter of the head's weight.

    The peak of memory is then that of the weight's gradient, for any vocabulary. Fewer than 64 tokens would be slower,
    and more than 1024 not faster.
    """
    return min(1024, max(64, width // 4))


@contextlib.contextmanager
def _replaced_loss(model: Any, loss_function: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the model's loss function for the duration of the block."""
    before = model.loss_function
    model.loss_function = loss_function
    try:
        yield
    finally:
        model.loss_function = before


def _without_weights(model: nn.Module) -> InseparableHeadError:
    return InseparableHeadError(
        f"ZeRO-3 releases the head of {type(model).__name__} after every evaluation, so its gradient cannot be summed "
        f"over chunks; train with ZeRO-2 or FSDP2, or with the model's own loss: in Python "
        f"revformers.set_head_loss(model, None), in a recipe loss.head own."
    )


def _another_loss(model: nn.Module) -> InseparableHeadError:
    return InseparableHeadError(
        f"{type(model).__name__} does not compute its loss as transformers' causal language models do, or was given "
        f"another loss_function, so no head loss can replace it; train it with its own loss, after "
        f"revformers.set_head_loss(model, None)."
    )
