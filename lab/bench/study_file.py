"""The file of a study: it is written after every measurement, and an interrupted study continues from it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.bench.environment import describe_environment, write_result
from revformers.errors import UserError

TABLES = ("memory", "peaks", "budgets", "largest", "points")
REMEDY = "name another --out, or discard its content with --overwrite"


class StudyFile:
    """The rows that a study has measured so far.

    Args:
        path: the JSON file.
        settings: the description of the study, in types that JSON supports; a study continues only with equal settings.
        arguments: the words that followed ``revformers`` on the command line.
        overwrite: discard the content of the file.

    Attributes:
        result: the settings, and the rows by table; `Study` describes the tables.

    Raises:
        UserError: if the file holds another study, or one from another machine, other software or another commit.

    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], arguments: Sequence[str], *, overwrite: bool = False
    ) -> None:
        self.path = path
        self._arguments = arguments
        self._environment = describe_environment()
        self.result: dict[str, Any] = {**settings, "finished": False, **{table: [] for table in TABLES}}
        if path.exists() and not overwrite:
            self._go_on(settings)

    def find(self, table: str, **key: Any) -> dict[str, Any] | None:
        """Return the row of `table` whose fields equal those of `key`, or None."""
        rows: list[dict[str, Any]] = self.result[table]
        return next((row for row in rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        """Add rows and write the file.

        Raises:
            UserError: if the code has changed since the study began or continued, as the rows may come from either.

        """
        self._require_equal(self._environment, describe_environment())
        self.result[table] += rows
        self._write()

    def finish(self) -> None:
        """Mark the study as finished; a file that is already marked does not change."""
        if not self.result["finished"]:
            self.result["finished"] = True
            self._write()

    def _write(self) -> None:
        write_result(self.path, self.result, self._arguments)

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        """Take over the rows of the study in the file, or raise UserError if they do not belong to this study."""
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
            rows = {table: before[table] for table in TABLES}
            there = {**before["environment"], **_flat({name: before.get(name) for name in settings})}
            finished = before["finished"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds no study that can continue; {REMEDY}.") from error
        # Through JSON, so that both have the same types.
        self._require_equal(there, {**self._environment, **_flat(json.loads(json.dumps(settings)))})
        self.result |= {**rows, "finished": finished}

    def _require_equal(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raise UserError if the settings or the environment in the file differ from the present ones."""
        for name in (name for name in {**here, **there} if name != "date"):
            if here.get(name) != there.get(name):
                raise UserError(
                    f"{self.path} holds a study whose {name.replace('_', ' ')} is {there.get(name)!r}, not "
                    f"{here.get(name)!r}, and a study does not mix figures of both; {REMEDY}."
                )


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat
