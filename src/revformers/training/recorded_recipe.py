"""The recipe that a run directory records: the mark of a run, and what a resumed run is compared with."""

import uuid
from pathlib import Path
from typing import Any

import yaml

from revformers.errors import UserError, as_user_error
from revformers.files import write_text
from revformers.training.changed_settings import FORMER_VALUE_NOTE, RunRecipe, compare_recipes

HEADER = "# The recipe of the run in this directory, written by revformers.\n"
"""The first line, by which a file is known as that of a run."""


IDENTITY_NOTE = "# Run "
"""How the line begins that holds the identity of the run."""


class RecordedRecipe:
    """The recipe.yaml of a run directory.

    Args:
        directory: the run directory.

    Attributes:
        path: the file.

    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "recipe.yaml"

    def check_author(self) -> None:
        """Raise UserError for a file that no run wrote."""
        if not self.path.read_bytes().startswith(HEADER.encode()):
            raise UserError(
                f"{self.path} was not written by a run of this version of revformers, and stays; choose another "
                f"directory with --output DIRECTORY."
            )

    def check_changes(self, recipe: RunRecipe, step: int) -> None:
        """Raise UserError for a change that a run cannot follow which resumes with `recipe` from `step`."""
        self._compare(recipe, step)

    def write(self, recipe: RunRecipe) -> None:
        """Write the recipe of a new run, and give the run an identity."""
        self._write(recipe, [f"{IDENTITY_NOTE}{uuid.uuid4().hex}\n"])

    def run_identity(self) -> str | None:
        """Return the identity that `write` gave to the run; None if the line was removed."""
        notes = (line for line in self._text().splitlines() if line.startswith(IDENTITY_NOTE))
        return next((line.removeprefix(IDENTITY_NOTE) for line in notes), None)

    def follow(self, recipe: RunRecipe, step: int) -> None:
        """Write the recipe of a run that resumes from `step`, with notes on the values of earlier steps."""
        changed, notes = self._compare(recipe, step)
        if changed:
            lines = self._text().splitlines(keepends=True)
            kept = [line for line in lines if line.startswith((IDENTITY_NOTE, FORMER_VALUE_NOTE))]
            self._write(recipe, kept + notes)

    def _compare(self, recipe: RunRecipe, step: int) -> tuple[list[str], list[str]]:
        with as_user_error(f"{self.path} is damaged", (yaml.YAMLError, ValueError)):
            before = yaml.safe_load(self._text())
        if not isinstance(before, dict):
            raise UserError(f"{self.path} is damaged: it holds no recipe; restore it, or give --overwrite.")
        return compare_recipes(self.path.parent, before, recipe, step)

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def _write(self, recipe: RunRecipe, notes: list[str]) -> None:
        values: dict[str, Any] = recipe.to_dict()
        write_text(self.path, "".join([HEADER, *notes, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)]))
