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
