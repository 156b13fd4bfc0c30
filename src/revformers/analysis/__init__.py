"""Stability of dynamics: closed forms of the linear test equation, and measurements on the layers of a real model."""

from revformers.analysis.analyze import Analysis, DynamicsAnalysis, LayerSpectrum, analyze
from revformers.analysis.hamiltonian import HamiltonianPair
from revformers.analysis.jacobian import Extremes, extreme_eigenvalues, jacobian_product
from revformers.analysis.linear import (
    Region,
    forward_growth,
    inverse_growth,
    regime,
    region,
    roots,
    stable_segment,
)

__all__ = [
    "Analysis",
    "DynamicsAnalysis",
    "Extremes",
    "HamiltonianPair",
    "LayerSpectrum",
    "Region",
    "analyze",
    "extreme_eigenvalues",
    "forward_growth",
    "inverse_growth",
    "jacobian_product",
    "regime",
    "region",
    "roots",
    "stable_segment",
]
