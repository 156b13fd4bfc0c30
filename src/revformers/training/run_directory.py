"""The directory of a run: its files, and the checks before a run starts or resumes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import yaml

from revformers.errors import UserError
from revformers.files import write_text


class RunRecipe(Protocol):
    """The interface of a recipe that a run directory needs."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The sections and values that a resumed run must not change."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values."""


TRAINER_STATE = "trainer_state.json"
"""The last file that transformers' Trainer writes into a checkpoint."""


class RunDirectory:
    """The paths of a run.

    Attributes:
        path: the directory.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.conversion = self.path / "conversion"
        self.metrics = self.path / "metrics.json"
        self.start = self.path / "start.json"
        self.history = self.path / "history.json"
        self.sample = self.path / "sample.txt"
        self.recipe = self.path / "recipe.yaml"

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, the latest last."""
        complete = [path.parent for path in self.path.glob(f"checkpoint-*/{TRAINER_STATE}") if _is_json(path)]
        return sorted(complete, key=_step)

    def prepare(self, recipe: RunRecipe, *, resume: bool, overwrite: bool) -> Path | None:
        """Prepare the directory for `recipe` and return the checkpoint to start from, or None.

        `overwrite` removes an existing run, and only the files that a run writes.

        Raises:
            UserError: if the directory holds a run and neither option is given, if there is no checkpoint to resume
                from, or if the run there has another model, other dynamics or other data.

        """
        if resume and overwrite:
            raise UserError("A run is either resumed or overwritten: give one of --resume and --overwrite.")
        checkpoints = self.checkpoints()
        if resume:
            if not checkpoints:
                raise UserError(f"{self.path} holds no checkpoint to resume from; leave out --resume to start there.")
            self._check_same(recipe)
        elif overwrite:
            self._clear()
        elif checkpoints or self.model.exists() or self.adapter.exists():
            raise UserError(
                f"{self.path} already holds a run; give --resume to continue it, --output DIRECTORY to keep it and "
                f"train elsewhere, or --overwrite to discard it."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))
        return checkpoints[-1] if resume else None

    def _check_same(self, recipe: RunRecipe) -> None:
        """Raise UserError if the checkpoints belong to a recipe with another model, other dynamics or other data."""
        if not self.recipe.is_file():
            return
        before = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        now = recipe.to_dict()
        for name in recipe.identity:
            then, wanted = (_fields(name, values.get(name)) for values in (before, now))
            for field, value in wanted.items():
                # Every activation policy computes the same gradients, so a resumed run may change it.
                if not field.endswith(".activations") and then.get(field) != value:
                    raise UserError(
                        f"The run in {self.path} was started with {field} {then.get(field)!r}, not {value!r}; resume "
                        f"it with its own recipe, or train elsewhere with --output DIRECTORY."
                    )

    def _clear(self) -> None:
        for directory in (*self.path.glob("checkpoint-*"), self.model, self.adapter, self.conversion):
            if directory.is_dir():
                shutil.rmtree(directory)
        for file in (self.metrics, self.start, self.history, self.sample, self.recipe):
            file.unlink(missing_ok=True)


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Return a part of a recipe under dotted names: the fields of a section, or one value."""
    if isinstance(value, dict):
        return {f"{name}.{field}": item for field, item in value.items()}
    return {name: value}


def _step(checkpoint: Path) -> int:
    number = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(number.group(1)) if number else -1


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
