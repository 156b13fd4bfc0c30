"""The settings of a run that may change when it resumes."""

from pathlib import Path
from typing import Any, Protocol

import yaml

from revformers.errors import UserError


class RunRecipe(Protocol):
    """The interface of a recipe that a run directory needs."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The sections and values that a resumed run must not change."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values."""


FOLLOWED = ("max_steps", "learning_rate", "warmup_steps", "max_grad_norm", "logging_steps", "eval_steps", "save_steps")
"""Fields of the training section that a resumed run may change, and then follows."""

WITHOUT_EFFECT = (
    "save_total_limit",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "optimizer_in_backward",
    "mlp_tile",
)
"""Further fields of it that may change, because they do not change what is learnt."""

ARGUMENTS_WITHOUT_EFFECT = ("report_to", "run_name")
"""The same in training.arguments."""

FORMER_VALUE_NOTE = "# Up to step "
"""How a line begins that notes a value in earlier steps."""


def compare_recipes(run: Path, values: dict[str, Any], recipe: RunRecipe, step: int) -> tuple[list[str], list[str]]:
    """Return the dotted names of all values that differ, and a comment line for each that the run follows.

    Args:
        run: the run directory, for messages.
        values: the recipe of the run, as nested dicts.
        recipe: the recipe to resume it with.
        step: the step from which it resumes.

    Raises:
        UserError: for a change that a resumed run cannot follow, or that comes too late.

    """
    before, now = flat(values), flat(yaml.safe_load(yaml.safe_dump(recipe.to_dict())))
    changed = [name for name in now if now[name] != before.get(name)]
    changed += [name for name in before if name not in now and before[name] is not None]
    for name in changed:
        if not _may_change(name, recipe.identity):
            raise UserError(
                f"The run in {run} was started with {name} {before.get(name)!r}, not {now.get(name)!r}; resume it with "
                f"its own recipe, or train elsewhere with --output DIRECTORY."
            )
    followed = [name for name in sorted(changed) if _is_followed(name)]
    last = now.get("training.max_steps", step)
    if step > last:
        raise UserError(
            f"The run in {run} has already trained {step} steps, more than the {last} of training.max_steps; raise it, "
            f"or leave it as it was."
        )
    if step == last and set(followed) - {"training.max_steps"}:
        raise UserError(
            f"The run in {run} has trained all its {step} steps, so a change of {followed[0]} has no effect; raise "
            f"training.max_steps to train on."
        )
    return changed, [f"{FORMER_VALUE_NOTE}{step}: {name} {before.get(name)!r}\n" for name in followed]


def _may_change(name: str, identity: tuple[str, ...]) -> bool:
    """Whether a resumed run may change the field of that dotted name."""
    section, _, field = name.partition(".")
    if name.startswith("training.arguments."):
        return field.removeprefix("arguments.") in ARGUMENTS_WITHOUT_EFFECT
    if section == "training":
        return field in FOLLOWED + WITHOUT_EFFECT
    # Every activation policy computes the same gradients, and states that are too small for a network can grow.
    return section not in identity or field in ("activations", "states")


def _is_followed(name: str) -> bool:
    """Whether a resumed run notes a change of the field of that dotted name, which changes what is learnt."""
    return name.removeprefix("training.") in FOLLOWED or name in ("dynamics.states", "conversion.states")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, under dotted names."""
    values_by_name: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            values_by_name |= flat(value, f"{prefix}{name}.")
        else:
            values_by_name[prefix + name] = value or None if isinstance(value, dict) else value
    return values_by_name
