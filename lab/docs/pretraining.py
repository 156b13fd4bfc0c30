"""Tables of docs/science/pretraining.md, from the committed studies of pretraining."""

from collections.abc import Mapping
from statistics import mean, variance
from typing import Any

from lab.docs.many_to_one import Comparison, compare_with_control
from lab.docs.markdown import result, show

ORDINARY = "residual"

Row = Mapping[str, Any]


def pretraining_conditions(name: str) -> None:
    """Print the network, the text and the training of a study, as a paragraph."""
    whole = result(f"pretraining-{name}")
    study = whole["study"]
    run, tuning = study["run"], study["tuning"]
    config, training = run["model"]["config"], run["training"]
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    tokens = batch * run["data"]["block_length"]
    counts = {row["parameters"] for row in whole["rows"] if not row["error"]}
    parameters = f"{_one(counts):,} parameters" if counts else "equal parameters"  # a diverged run says none
    text = run["data"]["source"]
    if text == "stdlib":  # the text is another one with another Python
        text = f"the standard library of Python {whole['environment']['python']}"
    print(
        f"{run['model']['architecture'].capitalize()} of {config['num_hidden_layers']} layers and width "
        f"{config['hidden_size']}, {parameters} in every arm; {training['max_steps']} steps of "
        f"{batch} x {run['data']['block_length']} tokens, "
        f"{training['max_steps'] * tokens:,} in all; AdamW, cosine schedule; learning rates "
        f"{', '.join(map(_rate, tuning['learning_rates']))} tried in {tuning['max_steps']} steps each with seed "
        f"{tuning['seed']}; seeds {', '.join(map(str, study['seeds']))} compared; "
        f"{run['data']['validation_blocks'] * run['data']['block_length']:,} tokens of validation "
        f"text; the text is {text}."
    )


def pretraining_losses(name: str) -> None:
    """Print the validation loss of every arm and its paired difference from the ordinary network."""
    study = result(f"pretraining-{name}")
    if _say_if_unfinished(study):
        return
    losses_of = compared(study)
    ordinary = losses_of.get(ORDINARY, {})
    rows = []
    for arm, losses in sorted(losses_of.items(), key=lambda item: mean(item[1].values())):
        found = list(losses.values())
        differences = paired(losses, ordinary)
        by_seed = [_difference(arm, losses.get(seed), ordinary.get(seed)) for seed in study["study"]["seeds"]]
        rates = {row["learning_rate"] for row in study["rows"] if is_compared(study, row) and row["arm"] == arm}
        rows.append(
            (
                arm,
                _rate(_one(rates)),
                f"{mean(found):.3f}",
                f"{min(found):.3f} to {max(found):.3f}",
                "-" if arm == ORDINARY or not differences else f"{mean(differences):+.3f}",
                "-" if set(by_seed) == {"-"} else ", ".join(by_seed),
            )
        )
    rows += [(arm, "-", "diverged", "-", "-", "-") for arm in study["study"]["arms"] if arm not in losses_of]
    show("dynamics | learning rate | loss | seeds | over the ordinary network | by seed", rows)


def _difference(arm: str, loss: float | None, ordinary: float | None) -> str:
    """Return the difference of a seed in words; "-" where there is none to take."""
    if loss is None:
        return "diverged"
    return "-" if arm == ORDINARY or ordinary is None else f"{loss - ordinary:+.3f}"


def pretraining_rates(name: str) -> None:
    """Print the validation loss of every trial by which the learning rates were chosen."""
    study = result(f"pretraining-{name}")
    rates = study["study"]["tuning"]["learning_rates"]
    losses = _trial_losses(study)
    rows = []
    for arm in study["study"]["arms"]:
        tried = all((arm, rate) in losses for rate in rates)
        best = min((loss for rate in rates if tried and (loss := losses[arm, rate]) is not None), default=None)
        rows.append((arm, *(_trial(losses, (arm, rate), best) for rate in rates)))
    show(" | ".join(("dynamics", *map(_rate, rates))), rows)


def pretraining_by_rate(name: str, *arms: str) -> None:
    """Print how far arms are from the ordinary network at every learning rate tried, a line for each."""
    study = result(f"pretraining-{name}")
    losses = _trial_losses(study)
    for arm in arms:
        at_rates = []
        for rate in study["study"]["tuning"]["learning_rates"]:
            loss, ordinary = losses.get((arm, rate)), losses.get((ORDINARY, rate))
            if loss is not None and ordinary is not None:
                at_rates.append(f"{loss - ordinary:+.3f} at {_rate(rate)}")
        print(f"* {arm}: {', '.join(at_rates)}.")


def pretraining_along(name: str) -> None:
    """Print the mean difference of every arm from the ordinary network at every validation of the compared runs."""
    study = result(f"pretraining-{name}")
    if _say_if_unfinished(study):
        return
    curves = {arm: along_training(study, arm) for arm in study["study"]["arms"] if arm != ORDINARY}
    steps = sorted({step for curve in curves.values() for step in curve})
    show(
        " | ".join(("dynamics", *(f"{step} steps" for step in steps))),
        ((arm, *(f"{curve[step]:+.3f}" for step in steps)) for arm, curve in curves.items() if curve),
    )


def pretraining_spread(name: str) -> None:
    """Print how much seeds alone change a loss and a difference, and which differences are larger than that."""
    study = result(f"pretraining-{name}")
    if _say_if_unfinished(study):
        return
    comparison = compared_with_ordinary(study)
    if comparison is None:
        print("Too few runs did not diverge to tell how much seeds change a loss.")
        return
    alone = mean(variance(found) for found in complete(study).values()) ** 0.5
    print(
        f"Between seeds, the loss of one dynamics has a standard deviation of {alone:.3f}, and its difference from the "
        f"ordinary network with the same seed one of {comparison.deviation:.3f}. The mean difference of "
        f"{len(study['study']['seeds'])} seeds has a standard error of {comparison.standard_error:.3f}. It counts as "
        f"found beyond {comparison.threshold:.1f} of these, which is {comparison.least_difference:.3f}, by Dunnett's "
        f"test at 5 % for {len(comparison.differences)} dynamics that are compared with one. The test takes the spread "
        f"of all dynamics to be equal:\n"
    )
    arms = sorted(comparison.differences, key=comparison.differences.__getitem__)
    groups = {-1: "found below the ordinary network", 0: "not told from it", 1: "found above it"}
    for sign, words in groups.items():
        named = "; ".join(arm for arm in arms if comparison.sign(arm) == sign)
        print(f"* {words}: {named or 'none'}.")
    if diverged := "; ".join(arm for arm in study["study"]["arms"] if arm not in {ORDINARY, *arms}):
        print(f"* not compared, because a run diverged: {diverged}.")


def compared(study: Row) -> dict[str, dict[int, float]]:
    """Return the validation loss of every arm by seed, over the compared runs; diverged ones are left out."""
    losses: dict[str, dict[int, float]] = {}
    for row in study["rows"]:
        if is_compared(study, row) and row["validation_loss"] is not None:
            losses.setdefault(row["arm"], {})[row["seed"]] = row["validation_loss"]
    return {arm: dict(sorted(losses[arm].items())) for arm in study["study"]["arms"] if arm in losses}


def complete(study: Row) -> dict[str, list[float]]:
    """Return the validation losses of the arms of which no compared run diverged, in the order of the seeds."""
    seeds = study["study"]["seeds"]
    return {arm: list(found.values()) for arm, found in compared(study).items() if len(found) == len(seeds)}


def compared_with_ordinary(study: Row) -> Comparison | None:
    """Return the comparison of the complete arms with the ordinary network; None if there is too little to compare."""
    return compare_with_control(complete(study), ORDINARY)


def along_training(study: Row, arm: str) -> dict[int, float]:
    """Return the mean paired difference from the ordinary network at every validation; diverged runs are left out."""
    differences: dict[int, list[float]] = {}
    curves = {
        (row["arm"], row["seed"]): {entry["step"]: entry["eval_loss"] for entry in row["curve"] if "eval_loss" in entry}
        for row in study["rows"]
        if is_compared(study, row) and row["validation_loss"] is not None
    }
    for (other, seed), curve in curves.items():
        if other == arm and (ORDINARY, seed) in curves:
            for step, loss in curve.items():
                differences.setdefault(step, []).append(loss - curves[ORDINARY, seed][step])
    return {step: mean(found) for step, found in differences.items()}


def paired(losses: Mapping[int, float], ordinary: Mapping[int, float]) -> list[float]:
    """Return the differences of two arms, seed by seed."""
    return [loss - ordinary[seed] for seed, loss in losses.items() if seed in ordinary]


def is_finished(study: Row) -> bool:
    """Return whether all runs are there; an arm all of whose trials diverged has no others."""
    return not _missing(study)


def _missing(study: Row) -> int:
    tuning, seeds = study["study"]["tuning"], study["study"]["seeds"]
    by_arm = {arm: [row for row in study["rows"] if row["arm"] == arm] for arm in study["study"]["arms"]}
    missing = 0
    for rows in by_arm.values():
        trials = [row for row in rows if _is_trial(study, row)]
        diverged = len(trials) == len(tuning["learning_rates"]) and all(row["error"] for row in trials)
        missing += len(tuning["learning_rates"]) + (0 if diverged else len(seeds)) - len(rows)
    return missing


def _say_if_unfinished(study: Row) -> bool:
    """Print how many runs are missing, if any, and return whether some are."""
    missing = _missing(study)
    if missing:
        print(f"\nNot finished: {missing} of {len(study['rows']) + missing} runs are missing.\n")
    return bool(missing)


def _trial_losses(study: Row) -> dict[tuple[str, float], float | None]:
    """Return the validation loss of every trial by arm and learning rate, None where it diverged."""
    trials = (row for row in study["rows"] if _is_trial(study, row))
    return {(row["arm"], row["learning_rate"]): row["validation_loss"] for row in trials}


def _trial(losses: Mapping[tuple[str, float], float | None], key: tuple[str, float], best: float | None) -> str:
    """Return the loss of a trial in words, in bold if it is the best of its arm."""
    loss = losses.get(key)
    if loss is None:
        return "diverged" if key in losses else "-"
    return f"**{loss:.3f}**" if loss == best else f"{loss:.3f}"


def is_compared(study: Row, row: Row) -> bool:
    """Return whether a run is one of those that are compared, and no trial of a learning rate."""
    return row["seed"] in study["study"]["seeds"] and row["max_steps"] == study["study"]["run"]["training"]["max_steps"]


def _is_trial(study: Row, row: Row) -> bool:
    return row["seed"] == study["study"]["tuning"]["seed"]


def _rate(rate: float) -> str:
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _one(values: set[Any]) -> Any:
    (value,) = values
    return value
