"""What the error of each layer's step costs, from one backward pass.

At a = 1 the step of layer l misses the ordinary network's by e_l = u(p[l]) - (p[l] - p[l-1]), the last update less what
its predictor knows of it. Let the stream carry w_l e_l after layer l, with a number w_l for every token that is 0. For
small w the KL divergence of the ordinary network's distribution of the next token is half of w^T F w, where F is the
Fisher information of w: the mean of g g^T over tokens y that the network itself draws, g the gradient of -log p(y) with
respect to w. So half of the mean of g_l^2 is what a = 1 costs in layer l alone, and one backward pass gives the g of
all layers. Errors of different tokens and layers are taken to be unrelated.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revformers.conversion.allocation import LayerCosts
from revformers.conversion.measure import Batch
from revformers.hf.discovery import find_stack
from revformers.hf.fields import LayerCall, LayerReturn, named_fields, ordinary_field
from revformers.hf.forward import CURRENT_RUN, ReversibleStack
from revformers.hf.hidden import replaced_forward


def measure_layer_costs(
    model: nn.Module, batches: Sequence[Batch], *, compensated: bool = False, seed: int = 0
) -> LayerCosts:
    """Measure what the blend of each layer costs, the other layers being ordinary.

    Args:
        model: a reversible model with a = 1 in every layer. Its update predictors, if any, must be fitted to the
            ordinary trajectory.
        batches: text to measure on, ``{"input_ids": int64[batch, tokens]}``; sequences are taken one by one, and one
            must fit into memory with all that autograd stores of it.
        compensated: whether step sizes make up for the blends (`dynamics.compensation`): the error of a layer's state
            is then seen by the next layer only, not by what follows.
        seed: of the tokens that the network draws. The random state of the caller is neither used nor changed.

    """
    decoder = find_stack(model).decoder
    generator = torch.Generator().manual_seed(seed)
    squares = torch.zeros(decoder._reversible_stack.number_of_layers, dtype=torch.float64)
    tokens = 0
    for batch in batches:
        for sequence in batch["input_ids"].split(1):
            run = _Perturbed(decoder._reversible_stack, compensated)
            token = CURRENT_RUN.set(run)
            try:
                with torch.enable_grad(), replaced_forward(decoder, partial(type(decoder).forward, decoder)):
                    logits = model(input_ids=sequence, use_cache=False).logits.flatten(0, 1).float()
            finally:
                CURRENT_RUN.reset(token)
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
            loss = functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, run.weights)
            squares += torch.stack([gradient.double().square().sum().cpu() for gradient in gradients])
            tokens += sequence.numel()
    return LayerCosts(tuple((squares / (2 * tokens)).tolist()))


class _Perturbed:
    """A run through the decoder as the ordinary network, with the error of every layer's step in it, times 0.

    Attributes:
        weights: w of every layer, zeros (batch, tokens, 1) in float32.

    """

    def __init__(self, stack: ReversibleStack, compensated: bool) -> None:
        self.stack = stack
        self.weights: list[Tensor] = []
        self._compensated = compensated
        self._previous: Tensor | None = None
        self._before: LayerCall | None = None

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Take the ordinary step of `layer`."""
        call, returned = LayerCall(layer, layer._reversible_role.index, inputs), LayerReturn()
        weight = torch.zeros(*hidden.shape[:-1], 1, device=hidden.device, requires_grad=True)
        self.weights.append(weight)
        ordinary = ordinary_field(call, returned)
        previous = hidden.detach() if self._previous is None else self._previous
        last_update = hidden.detach().float() - previous.float()
        if self._compensated:
            successor = hidden.float() + ordinary((hidden.float() + weight * last_update).to(hidden.dtype)).float()
        else:
            update = ordinary(hidden).float()
            with torch.no_grad():
                ((_, converted),) = named_fields(call, self._before, self.stack.dynamics, LayerReturn())
                error = converted(hidden).float() - update - last_update
            successor = hidden.float() + update + weight * error
        self._previous, self._before = hidden.detach(), call
        others = returned.finish()
        output = successor.to(hidden.dtype)
        return output if others is None else (output, *others)
