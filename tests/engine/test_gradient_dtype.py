import pytest
import torch

import revformers as rf
from revformers.engine.gradient_dtype import gradient_dtype

NARROW = [rf.Midpoint(), rf.Hamiltonian(), rf.BlendedMidpoint("1/16"), rf.BlendedMidpoint("1/2", 1.5), rf.Residual()]
WIDE = [rf.Leapfrog(), rf.BlendedMidpoint("3/2", 0.01), rf.BlendedMidpoint("-1/16"), rf.BlendedMidpoint.random(0)]


@pytest.mark.parametrize("dynamics", [*NARROW, *WIDE], ids=lambda dynamics: dynamics.recurrence)
def test_the_dtype_is_that_of_the_stream_where_it_suffices(dynamics):
    steps = dynamics.steps(12)
    expected = torch.bfloat16 if dynamics in NARROW else torch.float32
    assert gradient_dtype(torch.bfloat16, steps) == expected
    assert gradient_dtype(torch.float16, steps) == gradient_dtype(torch.float32, steps) == torch.float32
    assert gradient_dtype(torch.float64, steps) == torch.float64
