"""The cost of each layer's blend, from one backward pass.

Let e_l be the part of the last update that the state p[l] does not predict. A state that is ahead of the ordinary
network's by a share w of e_l is read by layer l and has no other effect (`dynamics.compensation`). Give every token and
every layer such a w, all of them 0. For small w the KL divergence from the ordinary network's next-token distribution
is half of w^T F w, where F is the Fisher information of w: the mean of g g^T over tokens y drawn from the network
itself, with g the gradient of -log p(y) with respect to w. The cost of w = 1 in layer l alone is therefore half of the
mean of g_l^2, and one backward pass gives the g of all layers. A second w per token and layer gives the cost of errors
that stay in the stream, as with a = 1. Errors of different tokens and layers are assumed to be uncorrelated.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from revformers.conversion.allocation import LayerCosts
from revformers.conversion.measure import Batch
from revformers.models.discovery import find_stack
from revformers.models.fields import LayerCall, LayerReturn, ordinary_field
from revformers.models.forward import CURRENT_RUN, ReversibleStack
from revformers.models.hidden import replaced_forward

COST_TOKENS = 4096
"""Number of tokens for the measurement of the costs."""


def measure_layer_costs(model: nn.Module, batches: Sequence[Batch], seed: int = 0) -> LayerCosts:
    """Measure the cost of each layer's blend while all other layers are ordinary.

    Args:
        model: a reversible model. Its update predictors, if any, predict the last update of the ordinary network from
            its state; see `fit.fit_last_updates`.
        batches: text to measure on, ``{"input_ids": int64[batch, tokens]}``; sequences are evaluated one by one, and
            autograd's stored tensors of one sequence must fit into memory.
        seed: seed of the tokens that the network draws. The caller's random state is neither used nor changed.

    """
    decoder = find_stack(model).decoder
    generator = torch.Generator().manual_seed(seed)
    squares = torch.zeros(2, decoder._reversible_stack.number_of_layers, dtype=torch.float64)
    tokens = 0
    for batch in batches:
        for sequence in batch["input_ids"].split(1):
            run = _Perturbed(decoder._reversible_stack)
            token = CURRENT_RUN.set(run)
            try:
                with torch.enable_grad(), replaced_forward(decoder, partial(type(decoder).forward, decoder)):
                    logits = model(input_ids=sequence, use_cache=False).logits.flatten(0, 1).float()
            finally:
                CURRENT_RUN.reset(token)
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
            loss = functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, [*run.read, *run.kept])
            squares += torch.stack([gradient.double().square().sum().cpu() for gradient in gradients]).view(2, -1)
            tokens += sequence.numel()
    read, kept = (squares / (2 * tokens)).tolist()
    return LayerCosts(tuple(read), tuple(kept))


class _Perturbed:
    """A run of the ordinary network through the decoder that adds the error e_l of every layer's state, times 0.

    Attributes:
        read: for every layer zeros, float32[batch, tokens, 1], the weight of the error in the layer's input.
        kept: for every layer zeros of the same shape, the weight of the error in the stream after the layer.

    """

    def __init__(self, stack: ReversibleStack) -> None:
        self.stack = stack
        self.read: list[Tensor] = []
        self.kept: list[Tensor] = []
        self._previous: Tensor | None = None

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Take the ordinary step of `layer`."""
        call, returned = LayerCall(layer, layer._reversible_role.index, inputs), LayerReturn()
        read, kept = (torch.zeros(*hidden.shape[:-1], 1, device=hidden.device, requires_grad=True) for _ in range(2))
        self.read.append(read)
        self.kept.append(kept)
        state = hidden.detach()
        error = torch.zeros_like(state, dtype=torch.float32)
        if self._previous is not None:
            error = state.float() - self._previous.float()
            predictor = getattr(layer, "update_predictor", None)
            if predictor is not None:
                with torch.no_grad():
                    error -= predictor([state]).float()
        self._previous = state
        update = ordinary_field(call, returned)((hidden.float() + read * error).to(hidden.dtype))
        successor = (hidden.float() + update.float() + kept * error).to(hidden.dtype)
        others = returned.finish()
        return successor if others is None else (successor, *others)
