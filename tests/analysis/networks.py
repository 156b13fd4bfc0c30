"""Networks of linear layers, whose recurrence is a product of matrices, and the fields of a tiny transformer."""

import torch

import revformers as rf
from revformers.analysis.walk import NamedStep, steps_of
from revformers.models.visit import layer_calls
from tests.tiny_models import batch, tiny


def linear_steps(matrices, dynamics):
    """Steps whose field is p -> p M^T."""
    return [
        NamedStep(
            f"layer {layer}", layer, dynamics.coefficients(layer), lambda p, matrix=matrix: p @ matrix.T.to(p.dtype)
        )
        for layer, matrix in enumerate(matrices)
    ]


def matrices(number, width, scale, seed=0, kind="general"):
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(number, width, width, dtype=torch.float64, generator=generator)
    return {"general": drawn, "symmetric": drawn + drawn.mT, "antisymmetric": drawn - drawn.mT}[kind]


def of_tiny(family="gpt_neox", dynamics=None, dtype=torch.float64, length=5):
    """The embedding and the steps of a tiny model; the norms of GPT-NeoX compute in float64."""
    dynamics = dynamics or rf.Residual()
    model = rf.make_reversible(tiny(family, dtype=dtype, initializer_range=0.3).eval(), dynamics, "store")
    with torch.no_grad():
        embedding, calls = layer_calls(model, {"input_ids": batch(model)["input_ids"][:1, :length]})
    return model, embedding, steps_of(calls, dynamics)
