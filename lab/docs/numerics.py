"""Tables of docs/science/numerics.md: what the floating-point inverse does to gradients."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import log2
from statistics import mean, median
from typing import Any

from lab.docs.markdown import result, show
from revformers.errors import counted

FORMATS = {
    "float32": "float32",
    "float32, states in float64": "states in float64",
    "autocast": "autocast",
    "bfloat16 weights": "bfloat16 weights",
    "bfloat16 weights and states": "bfloat16 weights and states",
}
"""The headings of the formats that the study names."""

RUNS = ("reversal", "reversal-smollm2")

TRAINED = ("wikitext-12L", "wikitext-32L")
"""The pretrained networks that are not shallow."""


def _rows() -> list[dict[str, Any]]:
    return [row for name in RUNS for row in result(name)["rows"]]


def _by_setup() -> dict[tuple[str, str], dict[str, list[dict[str, Any]]]]:
    """Return the rows of all seeds, by network and dynamics, then by format."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows():
        found[row["network"], row["dynamics"]][row["format"]].append(row)
    return found


def _size(error: float | None) -> str:
    """Return an error relative to the norm of the reference as text; None is one that is not finite."""
    if error is None:
        return "not finite"
    if error == 0:
        return "0"
    if error < 1e-4 or error >= 1e3:
        return f"{error:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{error:.2g}" if error < 10 else f"{error:.0f}"


def _range(values: Sequence[float | None]) -> str:
    """Return the smallest and the largest error in words, or one figure if they read the same; "" without values."""
    if not values:
        return ""
    ordered = sorted(values, key=lambda value: float("inf") if value is None else value)
    lowest, highest = _size(ordered[0]), _size(ordered[-1])
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _errors() -> Iterator[tuple[str, ...]]:
    for (network, dynamics), formats in _by_setup().items():
        values = ([row["inverse"]["whole"]["error"] for row in formats[name]] for name in FORMATS)
        yield network, dynamics, *map(_range, values)


def reversal_conditions() -> None:
    """Print what the networks read, as a sentence."""
    for name in RUNS:
        study = result(name)
        networks = dict.fromkeys(row["network"] for row in study["rows"])
        seeds = counted(1 + max(row["seed"] for row in study["rows"]), "seed")
        print(f"{study['batch']} x {study['tokens']} tokens, {seeds}: {'; '.join(networks)}.")


def reversal() -> None:
    """Print the error of the whole gradient by the floating-point inverse."""
    show(f"network | dynamics | {' | '.join(FORMATS.values())}", _errors())


def first_layers() -> None:
    """Print the lowest cosine of the first layer's gradient, and the error of p[0], in two formats."""
    rows = []
    for (network, dynamics), formats in _by_setup().items():
        figures = []
        for name in ("float32", "autocast"):
            if not formats[name]:
                figures += ["", ""]
                continue
            cosine = min(row["inverse"]["first_layer"]["cosine"] or 0.0 for row in formats[name])
            figures += [f"{round(cosine, 3) + 0.0:.3f}", _range([row["state_errors"][0] for row in formats[name]])]
        rows.append((network, dynamics, *figures))
    show("network | dynamics | cosine, float32 | p[0], float32 | cosine, autocast | p[0], autocast", rows)


def first_layer_over_whole() -> None:
    """Print how often the first layer's gradient has a larger error than all gradients together, as a sentence."""
    pairs = [(row["inverse"]["first_layer"]["error"], row["inverse"]["whole"]["error"]) for row in _rows()]
    wrong = [(first, whole) for first, whole in pairs if first is not None and whole]
    larger = sum(first > whole for first, whole in wrong)
    print(
        f"Its error, relative to its own norm, is larger than that of the gradient of all parameters in {larger} of "
        f"the {len(wrong)} runs in which the latter is not 0."
    )


def bfloat16_states() -> None:
    """Print the lowest error with states in bfloat16, and that of the pass itself in the same set-up, as a sentence."""
    rows = [row for row in _rows() if row["format"] == "bfloat16 weights and states"]
    lowest = min(rows, key=lambda row: row["inverse"]["whole"]["error"])
    setup = lowest["network"], lowest["dynamics"]
    kept = max(row["kept"]["whole"]["error"] for row in rows if "kept" in row and setup == _setup(row))
    print(
        f"The lowest error is {_size(lowest['inverse']['whole']['error'])}, of {setup[1]} on {setup[0]}, where the "
        f"same pass with kept states is off by {_size(kept)}."
    )


def _setup(row: dict[str, Any]) -> tuple[str, str]:
    return row["network"], row["dynamics"]


def _growth() -> dict[tuple[str, str], float | None]:
    """Return the median factor of a step backwards in float32, by network and dynamics; None if none is finite."""
    by_pair = {}
    for pair, formats in _by_setup().items():
        factors = []
        for row in formats["float32"]:
            errors = row["state_errors"]
            # The field of the last step reads p[L-1], which is kept; p[L-2] is the first state that is rebuilt.
            if errors[0] is not None and errors[-2]:
                factors.append((errors[0] / errors[-2]) ** (1 / (len(errors) - 2)))
        by_pair[pair] = median(factors) if factors else None
    return by_pair


def growth() -> None:
    """Print by which factor a step backwards enlarges the error of the states in float32."""
    by_pair = {pair: "not finite" if factor is None else f"{factor:.2f}" for pair, factor in _growth().items()}
    networks, columns = (list(dict.fromkeys(names)) for names in zip(*by_pair, strict=True))
    show(
        f"network | {' | '.join(columns)}",
        ((network, *(by_pair[network, name] for name in columns)) for network in networks),
    )


def digits_of_blends() -> None:
    """Print how many binary digits a step backwards costs blends on the first of `TRAINED`, as a sentence."""
    digits = [
        f"{log2(factor):.1f} ({dynamics})"
        for (network, dynamics), factor in _growth().items()
        if network == TRAINED[0] and "blended" in dynamics and factor
    ]
    print(f"On {TRAINED[0]} these are {' and '.join(digits)} binary digits a step.")


def last_steps() -> None:
    """Print by which factor the last two steps backwards enlarge the error of the states, as a sentence."""
    factors = []
    for row in _rows():
        errors = row["state_errors"]
        deep = row["network"] in TRAINED or row["network"].startswith("SmolLM2")
        if deep and row["format"] == "float32" and "blended" not in row["dynamics"]:
            factors.append(errors[0] / errors[2])
    print(
        f"In float32 and for |a| = 1, the last two steps alone enlarge the error {min(factors):.0f} to "
        f"{max(factors):.0f} times on the trained networks of 12 layers or more."
    )


def trained_ranges() -> None:
    """Print the range of the errors on the deeper trained networks in the dynamics with |a| = 1, as a sentence."""
    ranges = []
    for name, heading in FORMATS.items():
        errors = [
            row["inverse"]["whole"]["error"]
            for (network, dynamics), formats in _by_setup().items()
            if network in TRAINED and "blended" not in dynamics
            for row in formats[name]
        ]
        ranges.append(f"{_range(errors)} ({heading})")
    print(f"For |a| = 1 on {' and '.join(TRAINED)}, over all seeds, these errors are {', '.join(ranges)}.")


def kept_states() -> None:
    """Print how far the same backward pass is off with the states of the forward pass, as a sentence."""
    largest: dict[str, float] = defaultdict(float)
    for row in _rows():
        if "kept" in row:
            largest[row["format"]] = max(largest[row["format"]], row["kept"]["whole"]["error"])
    words = (f"{_size(largest[name])} ({heading})" for name, heading in FORMATS.items())
    print(f"With the states of the forward pass, the same backward pass is off by at most {', '.join(words)}.")


def library_gradients() -> None:
    """Print how many parameters of the library's models have equal gradients, as a sentence."""
    rows = [row for name in RUNS for row in result(name)["library"]]
    measured = [row for row in rows if "refused" not in row]
    equal, parameters = (sum(row[name] for row in measured) for name in ("equal", "parameters"))
    causes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "refused" in row:
            causes[row["refused"]].append(f"{row['network']}, {row['dynamics']}, {row['format']}")
    print(
        f"In {len(measured)} of {len(rows)} set-ups the library ran, and {equal:,} of {parameters:,} gradients of "
        f"parameters were equal to the bit."
    )
    for cause, setups in causes.items():
        print(f"It refused {'; '.join(setups)}: {cause.rstrip('.')}.")


def training_conditions() -> None:
    """Print what was trained by the floating-point inverse, as a sentence."""
    study = result("reversal-training")
    print(
        f"{study['layers']} layers of width {study['width']}, float32 layers with states in "
        f"{' and '.join(study['states'])}, {study['steps']} steps of {study['batch']} x {study['length']} bytes of "
        f"WikiText-2, AdamW with a learning rate of {study['learning_rate']:g}, seeds: {study['seeds']}."
    )


def training() -> None:
    """Print the held-out losses after training by autograd and by the inverse, and the errors of the gradient."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in result("reversal-training")["rows"]:
        rows[row["dynamics"], row["states"]].append(row)
    table = []
    for (dynamics, states), seeds in rows.items():
        differences = [row["held_out"]["inverse"] - row["held_out"]["autograd"] for row in seeds]
        table.append(
            (
                dynamics,
                states,
                f"{mean(row['held_out']['autograd'] for row in seeds):.3f}",
                ", ".join(f"{one:+.3f}" for one in differences),
                *(_range([row["gradient"][when]["error"] for row in seeds]) for when in ("fresh", "autograd")),
                f"{min(row['gradient']['autograd']['cosine'] or 0.0 for row in seeds):.3f}",
            )
        )
    show(
        "dynamics | states | loss by autograd | by the inverse, over it | error, fresh | error, trained | cosine, "
        "trained",
        table,
    )
