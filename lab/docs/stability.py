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


def radius_and_size() -> None:
    """Print, for fresh weights, how the largest eigenvalue and the size of the state change over the layers."""
    for model in result("stability")["models"]:
        found = [
            (one["layer"], abs(complex(*one["block"]["magnitude"])), one["state_rms"])
            for one in model["spectra"]
            if one["block"]["magnitude"]
        ]
        if "fresh" in model["name"]:
            (first, large, small_state), (second, *_), (last, small, large_state) = found[0], found[1], found[-1]
            products = [radius * size for _, radius, size in found]
            print(
                f"From layer {first} to layer {last} the largest magnitude falls {large / small:.0f} times and the "
                f"root mean square of the state rises {large_state / small_state:.0f} times; their product is "
                f"{products[0]:.3f} in layer {first} and {min(products[1:]):.3f} to {max(products[1:]):.3f} from layer "
                f"{second} on."
            )


def both_directions() -> None:
    """Print by how much growth forwards and growth of the inverse differ for the dynamics with |a| = 1."""
    ratios = []
    for model in result("stability")["models"]:
        for one in model["dynamics"]:
            if one["name"] in ("midpoint", "leapfrog", "hamiltonian"):
                ratio = one["growth_backwards"][-1] / one["growth_forwards"][-1]
                ratios.append((max(ratio, 1 / ratio), f"{DYNAMICS[one['name']]} on {model['name']}"))
    *others, (most, name) = sorted(ratios)
    print(
        f"For |a| = 1 they differ by a factor of {most:.1f} for {name}, and of at most {others[-1][0]:.1f} elsewhere."
    )


def equal_growth() -> None:
    """Print growth of the inverse and error in float32 of midpoint and Hamiltonian on wikitext-12L, as a sentence."""
    (model,) = (one for one in result("stability")["models"] if one["name"] == "wikitext-12L")
    by_name = {one["name"]: one for one in model["dynamics"]}
    midpoint, hamiltonian = by_name["midpoint"], by_name["hamiltonian"]
    growth = hamiltonian["growth_backwards"][-1] / midpoint["growth_backwards"][-1]
    error = hamiltonian["reversal_errors"]["float32"][1] / midpoint["reversal_errors"]["float32"][1]
    print(
        f"On {model['name']} the inverse of Hamiltonian grows {growth:.2f} times as much as that of midpoint, and its "
        f"error in float32 is {error:.0f} times as large."
    )


def _interval(found: Mapping[str, Any]) -> str:
    low, high = (found.get(kind) for kind in ("real_low", "real_high"))
    return f"{number(low and low[0])} to {number(high and high[0])}"
