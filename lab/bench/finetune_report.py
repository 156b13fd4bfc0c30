"""The parts of a report that cover the fine-tuning of a pretrained model."""

from collections.abc import Mapping
from typing import Any

from lab.bench import numbers

NETWORKS = {
    "original": "original",
    "initial": "converted",
    "": "fine-tuned",
    "deployed": "fine-tuned, as the ordinary network",
}
"""Names of a run's validation losses, by the prefix of "validation_loss" in its metrics, in the order of the page."""


def finetune_parts(
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    steps: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the parts of the page.

    Args:
        recipe: the recipe of the run.
        metrics: the content of the run's metrics.json, None before the run is finished.
        steps: the result of `lab/studies/lora_step.py`.
        evaluation: the result of `python -m lab evaluate`.

    """
    losses = _losses(metrics or {})
    return {
        "lead": _lead(recipe, metrics),
        "tiles": _tiles(losses, steps, evaluation),
        "losses": [_loss_row(name, loss, losses.get("original")) for name, loss in losses.items()],
        "steps": steps
        and {"tokens": steps["tokens"], "bits": steps.get("bits"), "rows": [_step_row(row) for row in steps["rows"]]},
        "names": (evaluation or {}).get("names"),
        "evaluation": [_evaluation_row(row) for row in _scores(evaluation)],
    }


def _losses(metrics: Mapping[str, Any]) -> dict[str, float]:
    names = {f"{key}_validation_loss".removeprefix("_"): label for key, label in NETWORKS.items()}
    return {label: metrics[name] for name, label in names.items() if name in metrics}


def _lead(recipe: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str:
    adapter = recipe["adapter"]["kind"]
    trained = "All weights" if adapter == "none" else f"LoRA adapters of rank {recipe['adapter']['rank']}"
    conversion = recipe["conversion"]
    network = "the ordinary network"
    if conversion["bits"] is not None:
        predictor = conversion["predictor"]
        network = f"converted at {conversion['bits']:g} bits, " + (
            "without predictors" if predictor == "none" else f"predictor: {predictor}"
        )
    elif conversion["activations"] not in ("store", "checkpoint"):
        network = "reversible when it was loaded"
    lead = f"{trained} of {recipe['model']['name']} ({network}), activations: {conversion['activations']}."
    if metrics:
        lead += f" {metrics['steps']:,} steps, {metrics['tokens']:,} tokens, {metrics['seconds']:.0f} s."
    return lead


def _tiles(
    losses: Mapping[str, float], steps: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """Return the figures at the top of the page, each with its label."""
    tiles = []
    deployed = NETWORKS["deployed"]
    if "fine-tuned" in losses:
        before = f"; {losses['original']:.4f} of the original" if "original" in losses else ""
        tiles.append({"figure": f"{losses['fine-tuned']:.4f}", "words": f"validation loss{before}"})
    if deployed in losses:
        tiles.append({"figure": f"{losses[deployed]:.4f}", "words": "validation loss deployed as the ordinary network"})
    peaks = {row["arm"]: row["peak"] for row in steps["rows"]} if steps else {}
    if "rebuild" in peaks:
        others = {"plain_store": "storing", "plain_checkpoint": "checkpointing"}
        against = ", ".join(f"{numbers.mebibytes(peaks[arm])} {word}" for arm, word in others.items() if arm in peaks)
        tiles.append({"figure": numbers.mebibytes(peaks["rebuild"]), "words": f"peak rebuilding; {against}"})
    for row in (evaluation or {}).get("differences", [])[:1]:
        tiles.append(
            {
                "figure": f"{row['difference']['value']:+.3f}",
                "words": f"{row['task']}, {row['metric']}, of the model evaluated",
            }
        )
    return tiles


def _loss_row(name: str, loss: float, original: float | None) -> list[str]:
    against = "-" if original is None or name == "original" else f"{loss / original - 1:+.2%}"
    return [name, f"{loss:.4f}", against]


def _step_row(row: Mapping[str, Any]) -> list[str]:
    seconds = numbers.seconds(row["seconds"]["median"])
    return [row["way"], numbers.mebibytes(row["peak"]), seconds, numbers.ratio(row["time_over_checkpoint"])]


def _scores(evaluation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the scores of an evaluation, with the differences from another model if there is one."""
    if evaluation is None:
        return []
    scores: list[Mapping[str, Any]] = evaluation.get("differences") or evaluation["model"]["scores"]
    return scores


def _evaluation_row(row: Mapping[str, Any]) -> list[str]:
    values = [_value(row)]
    if "against" in row:
        values += [_value(row["against"]), _value(row["difference"], sign="+")]
    return [f"{row['task']}, {row['metric']}", f"{row['documents']:,}", *values]


def _value(row: Mapping[str, Any], sign: str = "") -> str:
    error = row["standard_error"]
    return f"{row['value']:{sign}.3f}" + (f" ± {error:.3f}" if error is not None else "")
