import json
import re
import socket
import subprocess
from pathlib import Path

import torch

from lab.bench import environment as environment_module
from lab.bench.environment import _driver_version, _git_commit, command_line, describe_environment, write_result
from revformers.engine.ops import SWITCH


def test_the_environment_names_versions_and_no_machine(monkeypatch):
    environment = describe_environment()
    # The distributions of some builds leave out the local part, as in 2.11.0+cu130.
    assert environment["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert environment["torch_threads"] == torch.get_num_threads()
    assert environment["cores"] >= 1
    assert environment["memory_bytes"] > 2**28
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", environment["date"])
    text = json.dumps(environment)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert socket.gethostname() not in environment.values()


def test_kernels_that_were_switched_off_are_named(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert describe_environment()["kernels"] is None
    monkeypatch.setenv(SWITCH, "plain")
    assert describe_environment()["kernels"] == "plain"


def test_a_copy_without_git_names_its_commit_in_the_environment(monkeypatch):
    monkeypatch.setenv(environment_module.COMMIT, "0123456789ab")
    assert describe_environment()["git_commit"] != "0123456789ab", "git knows better"
    monkeypatch.setattr(environment_module, "_git_commit", lambda: None)
    assert describe_environment()["git_commit"] == "0123456789ab"
    monkeypatch.delenv(environment_module.COMMIT)
    assert describe_environment()["git_commit"] is None


def test_a_gpu_is_described_with_its_driver(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 580.159.04\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    _driver_version.cache_clear()
    environment = describe_environment()
    assert (environment["accelerator"], environment["driver"]) == ("NVIDIA H200", "580.159.04")
    tool.unlink()
    _driver_version.cache_clear()
    assert describe_environment()["driver"] is None
    _driver_version.cache_clear()


def test_the_commit_is_that_of_the_code(tmp_path):
    source, other, result = tmp_path / "package" / "file.py", tmp_path / "other.py", tmp_path / "result.json"
    source.parent.mkdir()
    for path in (source, other, result):
        path.write_text("one")
    assert _git_commit(source) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", *identity, *words], check=True, cwd=tmp_path)
    clean = _git_commit(source)
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    # A result that is measured anew does not change the code that measures the next one.
    result.write_text("two")
    assert _git_commit(source) == clean
    other.write_text("two")
    assert _git_commit(source) == f"{clean}-modified"
    untracked = tmp_path / "installed.py"
    untracked.write_text("three")
    assert _git_commit(untracked) is None


def test_commands_name_no_folders_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "runs" / "a"), str(tmp_path.parent / "b.yaml")
    assert command_line(["compare", outside, "--out", inside]) == "python -m lab compare b.yaml --out runs/a"
    assert command_line(["compare", f"--out={inside}"]) == "python -m lab compare --out=runs/a"
    assert command_line(["bench", "--dynamics.options", "{blend: 1/4}"]).endswith("'{blend: 1/4}'")


def test_a_result_carries_its_command_and_environment(tmp_path):
    path = tmp_path / "new" / "result.json"
    write_result(path, {"figure": 3}, ["bench", "depth"])
    result = json.loads(path.read_text())
    assert result["figure"] == 3
    assert result["command"] == "python -m lab bench depth"
    assert result["environment"]["torch"]
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
