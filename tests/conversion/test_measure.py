import math

import pytest
import torch
from torch import nn

from revformers.conversion.measure import mean_loss


class Uniform(nn.Module):
    """Gives every token the same probability, and one token more."""

    def __init__(self, favourite, logit):
        super().__init__()
        self.favourite, self.logit, self.rows = favourite, logit, []

    def forward(self, input_ids):
        self.rows.append(len(input_ids))
        logits = torch.zeros(*input_ids.shape, 8, dtype=torch.bfloat16)
        logits[..., self.favourite] = self.logit
        return type("Output", (), {"logits": logits})


def test_the_loss_is_that_of_all_next_tokens_whatever_the_batches():
    batches = [{"input_ids": torch.tensor([[3, 3, 3], [3, 1, 2]])}, {"input_ids": torch.tensor([[3, 3]])}]
    model = Uniform(3, math.log(9.0))
    logit = torch.tensor(math.log(9.0), dtype=torch.bfloat16).float().exp().item()
    seen, other = (-math.log(share / (7 + logit)) for share in (logit, 1.0))
    assert mean_loss(model, batches) == pytest.approx((3 * seen + 2 * other) / 5, rel=1e-5)
    assert model.rows == [1, 1, 1], "sequences are read one by one"
