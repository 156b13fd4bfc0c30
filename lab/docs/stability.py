"""Tables of docs/science/stability.md from lab/results/stability.json; see `lab.docs.tables`."""

from collections.abc import Mapping
from typing import Any

from lab.docs.markdown import result, show

DYNAMICS = {
    "residual": "residual",
    "midpoint": "midpoint",
    "leapfrog": "leapfrog",
    "blended_midpoint": "blend 1/2",
    "hamiltonian": "Hamiltonian",
}


def number(value: float | None) -> str:
    """Return a number with two or three digits; with a power of ten where it is large or small, and "-" for None."""
    if value is None:
        return "-"
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} · 10^{int(exponent)}"


def spectra() -> None:
    """Print the extreme eigenvalues of the layers and the growth per layer that they predict."""
    rows = []
    for model in result("stability")["models"]:
        by_name = {one["name"]: one for one in model["dynamics"]}
        for place, spectrum in enumerate(model["spectra"]):
            block, branches = spectrum["block"], spectrum["branches"] or {}
            growth = [
                number(by_name[name]["predicted_forward"][place]) for name in ("midpoint", "leapfrog", "hamiltonian")
            ]
            rows.append(
                (
                    model["name"],
                    spectrum["layer"],
                    number(spectrum["update_rms"] / spectrum["state_rms"]),
                    _interval(block),
                    number(block["imaginary"] and block["imaginary"][1]),
                    _interval(branches),
                    *growth,
                )
            )
    show(
        "network | layer | update / state | real parts | imaginary | real parts of mu | midpoint | leapfrog "
        "| Hamiltonian",
        rows,
    )


def growth() -> None:
    """Print the growth of perturbations through all layers, and the errors of the rebuilt embedding."""
    rows = []
    for model in result("stability")["models"]:
        for one in model["dynamics"]:
            back, errors = one["growth_backwards"], one["reversal_errors"]
            rows.append(
                (
                    model["name"],
                    DYNAMICS[one["name"]],
                    number(one["growth_forwards"][-1]),
                    number(back and back[-1]),
                    *(number(errors[kind][1]) if kind in errors else "-" for kind in ("float32", "bfloat16", "exact")),
                )
            )
    show("network | dynamics | forwards | inverse | float32 states | bfloat16 states | fixed point", rows)


def _interval(found: Mapping[str, Any]) -> str:
    low, high = (found.get(kind) for kind in ("real_low", "real_high"))
    return f"{number(low and low[0])} to {number(high and high[0])}"
