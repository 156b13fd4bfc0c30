"""The tables of an analysis: the eigenvalues by layer, and what every dynamics does."""

from revformers.analysis import Analysis, DynamicsAnalysis
from revformers.training.titled_table import TitledTable


def spectrum_table(analysis: Analysis) -> TitledTable:
    """Return a table of the extreme eigenvalues, and the growth per layer that they predict."""
    named = [one for one in analysis.dynamics if any(value is not None for value in one.predicted_forward)]
    table = TitledTable(
        caption=f"eigenvalues of the layers on {analysis.tokens} tokens, and the growth per layer that they predict, "
        "forwards / of the inverse",
        right=("layer", "real parts", "imaginary", *(one.name for one in named)),
    )
    for place, spectrum in enumerate(analysis.spectra):
        block = spectrum.block
        low, high = (None if value is None else value.real for value in (block.real_low, block.real_high))
        table.add(
            str(spectrum.layer),
            f"{number(low)} to {number(high)}",
            number(None if block.imaginary is None else block.imaginary.imag),
            *(f"{number(one.predicted_forward[place])} / {number(one.predicted_inverse[place])}" for one in named),
        )
    return table


def dynamics_table(analysis: Analysis) -> TitledTable:
    """Return a table of measured growth and of the errors of the rebuilt embedding."""
    table = TitledTable(
        caption="growth of a perturbation through all layers, and the error of the rebuilt embedding",
        left=("dynamics",),
        right=("forwards", "inverse", "float32 states", "bfloat16 states", "exact"),
    )
    for one in analysis.dynamics:
        back = None if one.growth_backwards is None else one.growth_backwards[-1]
        table.add(
            one.name,
            number(one.growth_forwards[-1]),
            number(back),
            *(_error(one, states) for states in ("float32", "bfloat16", "exact")),
        )
    return table


def number(value: float | None) -> str:
    """Return a number with three digits; "-" for None."""
    return "-" if value is None else f"{value:.3g}"


def _error(one: DynamicsAnalysis, states: str) -> str:
    errors = one.reversal_errors.get(states)
    return "-" if errors is None else f"{errors[1]:.1g}"
