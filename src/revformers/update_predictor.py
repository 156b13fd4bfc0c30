"""The update predictor: what a converted layer adds so that its next state is the original network's."""

import torch
from torch import Tensor, nn


class UpdatePredictor(nn.Module):
    """u(p, f) = A p + B f + c, an affine function of the state p[l] and of the layer's update f(p[l]).

    A blended step p[l+1] = a p[l-1] + (1 - a) p[l] + f takes a (p[l] - p[l-1]), a times the last update, from what
    the ordinary network would do. The inverse does not know p[l-1], but the last update is largely a linear function of
    p[l] and f, which both directions know. Adding u back leaves the step exactly invertible, whatever u is.

    Attributes:
        state: A, (width, width).
        update: B, (width, width).
        bias: c, (width).

    """

    def __init__(self, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.state = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        self.update = nn.Linear(width, width, device=device, dtype=dtype)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, state: Tensor, update: Tensor) -> Tensor:
        """Return u(p, f), (batch, tokens, width), in the dtype of the weights."""
        dtype = self.update.weight.dtype
        correction: Tensor = self.state(state.to(dtype)) + self.update(update.to(dtype))
        return correction

    @torch.no_grad()
    def set(self, solution: Tensor) -> None:
        """Take the solution of the least-squares fit, float64[2 width + 1, width] for the features [p, f, 1]."""
        width = self.state.weight.shape[0]
        self.state.weight.copy_(solution[:width].T)
        self.update.weight.copy_(solution[width : 2 * width].T)
        self.update.bias.copy_(solution[-1])
