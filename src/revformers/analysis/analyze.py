"""The stability of a model's own layers: `revformers.analysis.analyze`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from revformers.analysis.energy import invariants, mean_squares, update_mean_squares
from revformers.analysis.hamiltonian import product_roots
from revformers.analysis.jacobian import Extremes, Product, composed, extreme_eigenvalues, jacobian_product
from revformers.analysis.linear import forward_growth, inverse_growth
from revformers.analysis.perturbation import growth_backwards, growth_forwards
from revformers.analysis.reversal import exact_reversal_errors, float_reversal_errors
from revformers.analysis.walk import NamedStep, differentiable_attention, steps_of, walk
from revformers.dynamics import Dynamics, Residual, create
from revformers.dynamics.text import described
from revformers.engine.fixed_point import INT64
from revformers.errors import counted, require
from revformers.models.batch import inputs_of
from revformers.models.families import find_layout
from revformers.models.fields import LayerCall
from revformers.models.parts import reversible_stack
from revformers.models.visit import layer_calls
from revformers.reversible import make_residual, make_reversible

COMPARED: tuple[Dynamics, ...] = (
    create("midpoint"),
    create("leapfrog"),
    create("blended_midpoint", blend="1/2"),
    create("hamiltonian"),
)
"""The dynamics that are compared by default, besides the model's own."""

LAYERS = 5
"""Layers whose eigenvalues are found unless others are asked for, spread evenly over the stack."""

LONGEST_NAME = 40
"""Characters up to which the model's own dynamics are named by their options; more would fill tables and legends."""


@dataclass(frozen=True)
class LayerSpectrum:
    """Extreme eigenvalues of one layer at the state that it read.

    Attributes:
        layer: its number, from 0.
        state_rms: root mean square of p[l].
        update_rms: root mean square of f_l(p[l]).
        block: eigenvalues of the Jacobian of f_l.
        branches: eigenvalues of J_mlp J_attention, which decide on Hamiltonian steps; None if the branches are not
            known, or were not asked for.

    """

    layer: int
    state_rms: float
    update_rms: float
    block: Extremes
    branches: Extremes | None


@dataclass(frozen=True)
class DynamicsAnalysis:
    """What a dynamics does on the model's fields.

    Attributes:
        name: the dynamics; with its options, as the command takes them, if others of the same name are compared, or
            "NAME of the model" where the model's own options are long.
        recurrence: its recurrence in one line.
        predicted_forward: the largest growth per layer that the eigenvalues found predict, by analysed layer; None
            where they predict none (steps by branch with b other than 0, and two evaluations per step).
        predicted_inverse: the same for the inverse; infinite without one.
        growth_forwards: the size of a perturbation of the embedding after 0, 1, ..., n steps, relative to its start.
        growth_backwards: the same for the last pair through the inverse, in its order; None without an inverse.
        reversal_errors: by format of the states ("float32", "bfloat16", "exact"), the relative errors of the rebuilt
            p[-1], ..., p[n]; empty without an inverse. "exact" is missing where a state leaves the range of 64 bits.
        mean_squares: mean squares of p[-1], p[0], ..., p[n].
        update_mean_squares: mean squares of f_l(p[l]) of all steps.
        invariants: E of every layer, see `revformers.analysis.energy`; None where none is known.

    """

    name: str
    recurrence: str
    predicted_forward: tuple[float | None, ...]
    predicted_inverse: tuple[float | None, ...]
    growth_forwards: tuple[float, ...]
    growth_backwards: tuple[float, ...] | None
    reversal_errors: Mapping[str, tuple[float, ...]]
    mean_squares: tuple[float, ...]
    update_mean_squares: tuple[float, ...]
    invariants: tuple[float, ...] | None

    @property
    def round_trip(self) -> float | None:
        """Growth through the forward pass times growth through the inverse; None without an inverse."""
        return None if self.growth_backwards is None else self.growth_forwards[-1] * self.growth_backwards[-1]


@dataclass(frozen=True)
class Analysis:
    """The stability of a model's layers under several dynamics.

    Attributes:
        own: the name of the model's own dynamics, on whose states the eigenvalues were found; "residual" for an
            ordinary model.
        layers: number of layers.
        tokens: tokens of the batch.
        width: width of the states.
        dtype: what the layers computed in.
        spectra: eigenvalues of the analysed layers.
        dynamics: one entry per dynamics.

    """

    own: str
    layers: int
    tokens: int
    width: int
    dtype: str
    spectra: tuple[LayerSpectrum, ...]
    dynamics: tuple[DynamicsAnalysis, ...]

    @property
    def verdict(self) -> str:
        """What was measured, in a few sentences: the spectrum, and the dynamics with the least `round_trip`."""
        return " ".join(filter(None, (_spectrum_in_words(self.spectra), _least_growth_in_words(self.dynamics))))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: complex numbers as [real, imaginary], numbers that are not finite as None."""
        return _plain(dataclasses.asdict(self)) | {"verdict": self.verdict}


def analyze(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    dynamics: Sequence[Dynamics] | None = None,
    layers: Sequence[int] | None = None,
    branches: bool = True,
    tolerance: float = 1e-2,
    probes: int = 2,
    seed: int = 0,
) -> Analysis:
    """Measure how perturbations and rounding grow through the layers of a model, under several dynamics.

    Eigenvalues are those of the Jacobian of a layer's update on all tokens of the batch, at the states of the model's
    own forward pass, by Arnoldi iteration. They need some hundred evaluations per layer: use a short sequence. The
    other figures come from a pass of each dynamics through all layers with the model's weights, without training. An
    update predictor is part of its layer. Dropout is off. The model is not changed.

    Args:
        model: a model of transformers in float32 or float64, ordinary or reversible, or a PEFT model around one.
        batch: keyword arguments of the decoder, e.g. ``{"input_ids": int64[1, tokens]}``.
        dynamics: what to compare, without those that are named twice; by default the model's own, midpoint,
            leapfrog, a blend of 1/2, and hamiltonian where the branches of the layers are known.
        layers: the layers whose eigenvalues are found; by default five. An empty list finds none.
        branches: whether to also find the eigenvalues of J_mlp J_attention.
        tolerance: of the residuals of eigenvalues, relative; see `extreme_eigenvalues`.
        probes: random directions of perturbations.
        seed: of the random directions.

    Raises:
        MissingPackageError: without scipy, if eigenvalues are to be found.
        NotReversibleError: for a model that does more than pass one state through its layers.
        TypeError: if the batch is no mapping, or something other than dynamics is to be compared.
        ValueError: for another dtype, no probes, a tolerance or seed out of range, a layer that the model does not
            have, dynamics for another number of layers, or values that are not finite.

    """
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if weight is None:
        raise ValueError("The model has no floating-point weights; give a model of transformers.")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"Derivatives in {str(weight.dtype).removeprefix('torch.')} are too coarse to analyse; call model.float() "
            f"first."
        )
    if probes < 1:
        raise ValueError(f"probes is {probes}; a perturbation needs at least 1 random direction.")
    require(0 < tolerance < 1, "tolerance", "above 0 and below 1", tolerance)
    require(seed >= 0, "seed", "at least 0", seed)
    if isinstance(dynamics, Dynamics) or not all(isinstance(one, Dynamics) for one in dynamics or ()):
        raise TypeError(f"dynamics is a list of dynamics such as [revformers.Midpoint()], not {dynamics!r}.")
    inputs = inputs_of(batch, weight.device)
    with _reversible_and_silent(model) as own, torch.no_grad(), differentiable_attention():
        embedding, calls = layer_calls(model, inputs)
        chosen = _chosen_layers(layers, len(calls))
        tried = _without_repetitions(_default_dynamics(own, calls) if dynamics is None else dynamics)
        for one in tried:
            one.check(len(calls))
        finder = _Finder(calls, own, embedding, tolerance, seed)
        finder.require_finite_states()
        spectra = tuple(finder.spectrum(layer, branches) for layer in chosen)
        names = _names_of(tried, own)
        analysed = tuple(
            _analysis_of(name, one, calls, embedding, spectra, probes, seed)
            for name, one in zip(names, tried, strict=True)
        )
    return Analysis(
        own=own.name,
        layers=len(calls),
        tokens=embedding.shape[:-1].numel(),
        width=embedding.shape[-1],
        dtype=str(embedding.dtype).removeprefix("torch."),
        spectra=spectra,
        dynamics=analysed,
    )


@contextmanager
def _reversible_and_silent(model: nn.Module) -> Iterator[Dynamics]:
    """Yield the model's own dynamics; in the block it has a recurrence and no dropout."""
    training = {module: module.training for module in model.modules()}
    stack = reversible_stack(model)
    if stack is None:
        make_reversible(model, Residual(), "store")
    model.eval()
    try:
        yield Residual() if stack is None else stack.dynamics
    finally:
        if stack is None:
            make_residual(model)
        for module, was in training.items():
            module.training = was


def spread_layers(number: int, depth: int) -> list[int]:
    """Return the numbers of at most `number` of `depth` layers, evenly spread from the first to the last."""
    return sorted({round(place * (depth - 1) / max(1, number - 1)) for place in range(number)})


def _chosen_layers(layers: Sequence[int] | None, number: int) -> list[int]:
    if layers is None:
        return spread_layers(LAYERS, number)
    for layer in layers:
        if not 0 <= layer < number:
            raise ValueError(f"The model has {counted(number, 'layer')}, from 0 to {number - 1}, and no layer {layer}.")
    return sorted(set(layers))


def _default_dynamics(own: Dynamics, calls: Sequence[LayerCall]) -> list[Dynamics]:
    by_branch = all(find_layout(call.layer) is not None for call in calls)
    return [own, *(one for one in COMPARED if one.granularity == "block" or by_branch)]


def _without_repetitions(dynamics: Sequence[Dynamics]) -> list[Dynamics]:
    return [one for place, one in enumerate(dynamics) if one not in dynamics[:place]]


def _names_of(dynamics: Sequence[Dynamics], own: Dynamics) -> list[str]:
    """Return a name for each of different dynamics, with the options of those that share a name."""
    names = [one.name for one in dynamics]
    return [_name_with_options(one, own) if names.count(one.name) > 1 else one.name for one in dynamics]


def _name_with_options(dynamics: Dynamics, own: Dynamics) -> str:
    """Return the name with options, or "NAME of the model" for a converted model's, which has two numbers per layer."""
    name = described(dynamics)
    return f"{dynamics.name} of the model" if dynamics == own and len(name) > LONGEST_NAME else name


class _Finder:
    """Finds eigenvalues at the states of the model's own forward pass."""

    def __init__(
        self, calls: Sequence[LayerCall], own: Dynamics, embedding: Tensor, tolerance: float, seed: int
    ) -> None:
        self._calls, self._own, self._seed, self._tolerance = calls, own, seed, tolerance
        self._dtype = embedding.dtype
        # of the whole stack: predictors may evaluate the layer before
        self._blocks = steps_of(calls, Residual())
        self._states = walk(steps_of(calls, own), embedding, own.start)[1:]

    def require_finite_states(self) -> None:
        """Raise ValueError if a state of the model's own forward pass is not finite."""
        for step, state in enumerate(self._states):
            if not state.isfinite().all():
                where = f"Layer {(step - 1) // self._own.steps_per_layer} returns" if step else "The embedding has"
                raise ValueError(f"{where} values that are not finite, so nothing can be analysed; check the weights.")

    def spectrum(self, layer: int, branches: bool) -> LayerSpectrum:
        """Return the eigenvalues of one layer."""
        block = self._blocks[layer]
        state = self._state(layer * self._own.steps_per_layer)
        known = branches and find_layout(self._calls[layer].layer) is not None
        return LayerSpectrum(
            layer=layer,
            state_rms=_rms(state),
            update_rms=_rms(block.field(state)),
            block=self._find(jacobian_product(block.field, state), state),
            branches=self._find(self._branch_product(layer, state), state) if known else None,
        )

    def _branch_product(self, layer: int, state: Tensor) -> Product:
        attention, mlp = steps_of(self._calls[layer : layer + 1], Residual(granularity="branch"))
        by_branch = self._own.granularity == "branch"
        between = self._state(2 * layer + 1) if by_branch else state + attention.field(state)
        return composed(jacobian_product(mlp.field, between), jacobian_product(attention.field, state))

    def _state(self, step: int) -> Tensor:
        return self._states[step].to(self._dtype)

    def _find(self, product: Product, like: Tensor) -> Extremes:
        return extreme_eigenvalues(product, like, tolerance=self._tolerance, seed=self._seed)


def _analysis_of(
    name: str,
    dynamics: Dynamics,
    calls: Sequence[LayerCall],
    embedding: Tensor,
    spectra: Sequence[LayerSpectrum],
    probes: int,
    seed: int,
) -> DynamicsAnalysis:
    steps = steps_of(calls, dynamics)
    states = walk(steps, embedding, dynamics.start)
    measured: dict[str, Any] = {"dtype": embedding.dtype, "probes": probes, "seed": seed}
    backwards, errors = None, dict[str, tuple[float, ...]]()
    if dynamics.reversible:
        backwards = tuple(growth_backwards(steps, states, **measured))
        errors = _reversal_errors(steps, embedding, dynamics, states)
    predicted = [_predicted(dynamics, spectrum) for spectrum in spectra]
    conserved = invariants(steps, states, dynamics.granularity)
    return DynamicsAnalysis(
        name=name,
        recurrence=dynamics.recurrence,
        predicted_forward=tuple(forward for forward, _ in predicted),
        predicted_inverse=tuple(inverse for _, inverse in predicted),
        growth_forwards=tuple(growth_forwards(steps, states, dynamics.start, **measured)),
        growth_backwards=backwards,
        reversal_errors=errors,
        mean_squares=tuple(mean_squares(states)),
        update_mean_squares=tuple(update_mean_squares(steps, states, embedding.dtype)),
        invariants=None if conserved is None else tuple(conserved),
    )


def _reversal_errors(
    steps: Sequence[NamedStep], embedding: Tensor, dynamics: Dynamics, states: Sequence[Tensor]
) -> dict[str, tuple[float, ...]]:
    errors = {
        str(dtype).removeprefix("torch."): tuple(float_reversal_errors(steps, embedding, dynamics.start, dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    largest = max(state.abs().max().item() for state in states)
    if largest < INT64.maximum_magnitude:  # which is false for NaN
        errors["exact"] = tuple(exact_reversal_errors(steps, embedding, dynamics.start, INT64))
    return errors


def _predicted(dynamics: Dynamics, spectrum: LayerSpectrum) -> tuple[float | None, float | None]:
    """Return the largest growth per layer that eigenvalues predict, forwards and of the inverse."""
    step = dynamics.coefficients(spectrum.layer)
    if dynamics.evaluations_per_step != 1:
        return None, None
    if dynamics.granularity == "block":
        values = spectrum.block.found
        if not values:
            return None, None
        return float(forward_growth(step, values).max()), float(inverse_growth(step, values).max())
    if step.current or spectrum.branches is None or not spectrum.branches.found:
        return None, None
    sizes = np.abs(product_roots(step, spectrum.branches.found))
    return float(sizes.max()), float(1 / sizes.min())


def _spectrum_in_words(spectra: Sequence[LayerSpectrum]) -> str:
    values = [value for spectrum in spectra for value in spectrum.block.found]
    if not values:
        return ""
    real, imaginary = [value.real for value in values], [abs(value.imag) for value in values]
    positive = sum(any(value.real > 1e-3 for value in spectrum.block.found) for spectrum in spectra)
    return (
        f"The extreme eigenvalues of the layers have real parts from {min(real):.3g} to {max(real):.3g} and imaginary "
        f"parts up to {max(imaginary):.3g}. A positive real part, at which a perturbation grows under "
        f"midpoint and leapfrog alike, was found in {positive} of {counted(len(spectra), 'layer')}."
    )


def _least_growth_in_words(dynamics: Sequence[DynamicsAnalysis]) -> str:
    with_inverse = [one for one in dynamics if one.round_trip is not None and math.isfinite(one.round_trip)]
    if not with_inverse:
        return ""
    best = min(with_inverse, key=lambda one: one.round_trip or 0.0)
    assert best.growth_backwards is not None
    product = f"; the product of both is the least of {len(with_inverse)} dynamics with an inverse"
    error = best.reversal_errors["float32"][1]
    return (
        f"With {best.name} a perturbation of the embedding grows {best.growth_forwards[-1]:.3g}-fold to the end, and "
        f"one of the last states {best.growth_backwards[-1]:.3g}-fold on the way back"
        f"{product if len(with_inverse) > 1 else ''}. Rebuilt in float32, the embedding is off by {error:.1g} of its "
        f"size."
    )


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
