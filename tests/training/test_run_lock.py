import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from revformers.errors import UserError
from revformers.training import run_lock
from revformers.training.run_lock import RunLock

HOLD = (
    "import sys, time\n"
    "from filelock import FileLock\n"
    "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)\n"
)


def test_a_locked_directory_names_the_process_that_uses_it(tmp_path):
    first = RunLock(tmp_path)
    first.acquire()
    with pytest.raises(UserError, match=rf"is in use by a run of process {os.getpid()} on .* since \d{{4}}-"):
        RunLock(tmp_path).acquire()
    first.acquire()
    first.release()
    first.release()
    RunLock(tmp_path).acquire()


def test_a_lock_ends_with_the_process_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_FOR_CHILDREN", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        owner = {"process": other.pid, "host": socket.gethostname(), "since": "now"}
        (tmp_path / ".running.json").write_text(json.dumps(owner))
        with pytest.raises(UserError, match=f"process {other.pid} on"):
            RunLock(tmp_path).acquire()
        other.send_signal(signal.SIGKILL)
    RunLock(tmp_path).acquire()


def test_a_process_on_another_host_may_be_gone(tmp_path):
    first = RunLock(tmp_path)
    first.acquire()
    (tmp_path / ".running.json").write_text(json.dumps({"process": 7, "host": "another", "since": "now"}))
    with pytest.raises(
        UserError, match=r"process 7 on another since now; .*; if that process is gone, remove .*\.lock"
    ):
        RunLock(tmp_path).acquire()
    first.release()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, error):
    """Of these filelock takes ENOSYS for itself in later versions, and marks the directory by a file."""

    def without_locks(*arguments):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", without_locks)
    lock = RunLock(tmp_path)
    with pytest.warns(UserWarning, match="lock"):
        lock.acquire()
    assert lock.owner()["process"] == os.getpid()
    lock.release()
    assert lock.owner() is None


def test_another_error_of_a_lock_is_not_taken_for_a_file_system_without_locks(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="Input/output"):
        RunLock(tmp_path).acquire()
