"""Stability of dynamics: closed forms of the linear test equation, and measurements on the layers of a real model."""

from revformers.analysis.analyze import Analysis, DynamicsAnalysis, LayerSpectrum, analyze
from revformers.analysis.hamiltonian import HamiltonianPair
from revformers.analysis.jacobian import Extremes, extreme_eigenvalues, jacobian_product, token_block
from revformers.analysis.linear import (
    Region,
    forward_growth,
    inverse_growth,
    regime,
    region,
    roots,
    stable_segment,
)
from revformers.analysis.walk import NamedStep, differentiable_attention, steps_of, walk
from revformers.models.visit import layer_calls

__all__ = [
    "Analysis",
    "DynamicsAnalysis",
    "Extremes",
    "HamiltonianPair",
    "LayerSpectrum",
    "NamedStep",
    "Region",
    "analyze",
    "differentiable_attention",
    "extreme_eigenvalues",
    "forward_growth",
    "inverse_growth",
    "jacobian_product",
    "layer_calls",
    "regime",
    "region",
    "roots",
    "stable_segment",
    "steps_of",
    "token_block",
    "walk",
]
