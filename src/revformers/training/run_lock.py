"""The lock of a run directory: one run at a time writes into it."""

import errno
import json
import os
import socket
import warnings
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from revformers.errors import UserError
from revformers.files import write_json

SECONDS_FOR_CHILDREN = 15.0
"""How long the processes that load data may outlive a killed run, whose lock they share."""


WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Error numbers of file systems that have no locks, such as some network and cluster file systems."""


class RunLock:
    """The lock of a directory; the operating system releases it when the process ends, however it ends.

    On a file system without locks there is a warning instead. filelock may then mark the directory by a file, which
    outlives a process that was killed.

    Args:
        folder: the directory.

    Attributes:
        held: whether this object has locked the directory.

    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        self._own: dict[str, object] = {}
        self._folder = folder
        self._owner = folder / ".running.json"
        self._lock = FileLock(folder / ".lock")

    def acquire(self) -> None:
        """Lock the directory, which must exist, unless this object has done so.

        Raises:
            UserError: if another run, which the message names, has locked it.

        """
        if self.held:
            return
        try:
            self._acquire_file()
        except Timeout:
            raise UserError(self._in_use()) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
                raise
            warnings.warn(
                f"The file system of {self._folder} has no locks, so a second run in this directory would not be "
                f"noticed; make sure that there is none.",
                stacklevel=2,
            )
        self.held = True
        since = datetime.now().isoformat(" ", "seconds")
        self._own = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        write_json(self._owner, self._own)

    def release(self) -> None:
        """Unlock the directory if this object has locked it."""
        if self.held:
            if self.is_in_place():
                self._owner.unlink()
            self._lock.release()
            self.held = False

    def is_in_place(self) -> bool:
        """Whether the directory is the one that this object has locked, and was not moved, deleted or replaced."""
        return self.owner() == self._own

    def owner(self) -> dict[str, object] | None:
        """Return the process, the host and the beginning of the run that has locked the directory, None if unknown."""
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return {name: owner[name] for name in ("process", "host", "since")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _acquire_file(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if self._owner_lives():
                raise
            self._lock.acquire(timeout=SECONDS_FOR_CHILDREN)

    def _in_use(self) -> str:
        owner = self.owner()
        if owner is None:
            user, remedy = "another process", ""
        else:
            user = f"process {owner['process']} on {owner['host']} since {owner['since']}"
            elsewhere = owner["host"] != socket.gethostname()
            remedy = f"; if that process is gone, remove {self._lock.lock_file}" if elsewhere else ""
        return (
            f"{self._folder} is in use by a run of {user}; wait for its end, or train elsewhere with --output "
            f"DIRECTORY{remedy}."
        )

    def _owner_lives(self) -> bool:
        owner = self.owner()
        return owner is not None and (
            owner["host"] != socket.gethostname() or psutil.pid_exists(int(str(owner["process"])))
        )
