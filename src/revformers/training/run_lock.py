"""The lock of a run directory: one run at a time writes into it."""

import json
import os
import socket
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from revformers.errors import UserError
from revformers.files import write_json

SECONDS_FOR_CHILDREN = 15.0
"""How long the processes that load data may outlive a killed run, whose lock they share."""


class RunLock:
    """The lock of a directory; the operating system releases it when the process ends, however it ends.

    Args:
        folder: the directory.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = folder / ".running.json"
        self._lock = FileLock(folder / ".lock")

    def acquire(self) -> None:
        """Lock the directory, which must exist.

        Raises:
            UserError: if another run, which the message names, has locked it.

        """
        try:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                if self._owner_lives():
                    raise
                self._lock.acquire(timeout=SECONDS_FOR_CHILDREN)
        except Timeout:
            owner = self._read_owner()
            who = (
                f"process {owner['process']} on {owner['host']} since {owner['since']}" if owner else "another process"
            )
            raise UserError(
                f"{self._folder} is in use by a run of {who}; wait for its end, or train elsewhere with "
                f"--output DIRECTORY."
            ) from None
        since = datetime.now().isoformat(" ", "seconds")
        write_json(self._owner, {"process": os.getpid(), "host": socket.gethostname(), "since": since})

    def release(self) -> None:
        """Unlock the directory if this object has locked it."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def _read_owner(self) -> dict[str, object] | None:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return {name: owner[name] for name in ("process", "host", "since")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _owner_lives(self) -> bool:
        owner = self._read_owner()
        return owner is not None and (
            owner["host"] != socket.gethostname() or psutil.pid_exists(int(str(owner["process"])))
        )
