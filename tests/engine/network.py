"""A plain stack of modules, without transformers, that engine tests run."""

import pytest
import torch
from torch import nn

import revformers as rf
from revformers.activations import parse_policy
from revformers.engine.gradient_dtype import gradient_dtype
from revformers.engine.state_format import StateFormat
from revformers.engine.trajectory import Trajectory

WIDTH, DEPTH = 16, 6
REVERSIBLE = [
    rf.Midpoint(),
    rf.Midpoint(0.25, readout="mean", start="zero"),
    rf.Leapfrog(0.5),
    rf.BlendedMidpoint("1/2"),
    rf.BlendedMidpoint("-1/16"),
    rf.BlendedMidpoint("2/3"),
    rf.BlendedMidpoint([1, -1, 0.5, 1.5, 0.25, 0.004]),
    rf.BlendedMidpoint.random(3),
]
each_reversible = pytest.mark.parametrize("dynamics", REVERSIBLE, ids=lambda dynamics: repr(dynamics.to_dict()))


def bound(activations, dynamics, depth=DEPTH):
    """Return what begins a pass of a policy, for a trajectory through `depth` layers."""
    begin = parse_policy(activations).bind(dynamics.steps_per_layer)
    return lambda states: begin(states, dynamics.steps(depth))


def trajectory_of(dynamics, begin, embedding, **options):
    """Return a trajectory as a model has it: states and sums of gradients follow from the dtype of the embedding."""
    defaults = {
        "fixed_point": StateFormat().of_pass(embedding.dtype, embedding.device),
        "gradient_dtype": gradient_dtype(embedding.dtype, dynamics.steps(DEPTH)),
        "range_at_once": embedding.is_cpu,
    }
    return Trajectory(dynamics, begin, embedding, **defaults | options)


class Network(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float32, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, 3 * WIDTH),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(3 * WIDTH, WIDTH),
            )
            for _ in range(DEPTH)
        ).to(dtype)
        self.embedding = torch.randn(2, 5, WIDTH, dtype=dtype, requires_grad=True)

    def run(self, dynamics, activations, seed=1, **options):
        torch.manual_seed(seed)
        trajectory = trajectory_of(dynamics, bound(activations, dynamics), self.embedding, **options)
        for index, layer in enumerate(self.layers):
            trajectory.step(f"layer {index}", dynamics.coefficients(index), layer)
        return trajectory.readout().float().square().sum()

    def gradients(self, loss, **options):
        return torch.autograd.grad(loss, [self.embedding, *self.layers.parameters()], **options)

    def reference(self, dynamics):
        """The same recurrence in plain autograd: no fixed point, no policy, none of the stack's code."""
        previous = current = self.embedding
        if dynamics.start == "zero":
            previous = torch.zeros_like(current)
        for index, layer in enumerate(self.layers):
            c = dynamics.coefficients(index)
            successor = float(c.previous) * previous + float(c.current) * current + c.update * layer(current)
            previous, current = current, successor
        return ((previous + current) / 2 if dynamics.readout == "mean" else current).float().square().sum()


def equal(left, right):
    return all(map(torch.equal, left, right))
