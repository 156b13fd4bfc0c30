"""The file of a study: written after every measurement, and where an interrupted study goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.bench.environment import describe_environment, write_result
from revformers.errors import UserError

TABLES = ("memory", "peaks", "budgets", "largest", "points")
REMEDY = "name another --out, or discard what is there with --overwrite"


class StudyFile:
    """The rows that a study has measured so far.

    Args:
        path: the JSON file.
        settings: what describes the study, in types that JSON keeps; a study goes on only with the same.
        arguments: the words that followed ``revformers`` on the command line.
        overwrite: discards what is there.

    Attributes:
        result: the settings, and the rows by table; see `Study` for what they hold.

    Raises:
        UserError: where the file holds another study, or one of another machine, other software or another commit.

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
        """Return the row of `table` whose fields are those of `key`, if there is one."""
        rows: list[dict[str, Any]] = self.result[table]
        return next((row for row in rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, table: str, *rows: dict[str, Any]) -> None:
        """Add rows and write the file.

        Raises:
            UserError: where the code has changed since the study began or went on; the rows may be of either.

        """
        self._require_equal(self._environment, describe_environment())
        self.result[table] += rows
        self._write()

    def finish(self) -> None:
        """Note that nothing is left to measure; a file that says so already stays as it is."""
        if not self.result["finished"]:
            self.result["finished"] = True
            self._write()

    def _write(self) -> None:
        write_result(self.path, self.result, self._arguments)

    def _go_on(self, settings: Mapping[str, Any]) -> None:
        """Take over the rows of the study that is there, or raise UserError where its figures do not go with ours."""
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
            rows = {table: before[table] for table in TABLES}
            there = {**before["environment"], **_flat({name: before.get(name) for name in settings})}
            finished = before["finished"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds no study that could go on; {REMEDY}.") from error
        # Through JSON, so that both are in its types.
        self._require_equal(there, {**self._environment, **_flat(json.loads(json.dumps(settings)))})
        self.result |= {**rows, "finished": finished}

    def _require_equal(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raise UserError where what the file was measured on, and with, is not what there is now."""
        for name in (name for name in {**here, **there} if name != "date"):
            if here.get(name) != there.get(name):
                raise UserError(
                    f"{self.path} holds a study whose {name.replace('_', ' ')} is {there.get(name)!r}, not "
                    f"{here.get(name)!r}, and figures of two are not put together; {REMEDY}."
                )


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat
