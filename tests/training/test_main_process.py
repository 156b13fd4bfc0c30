import pytest

from revformers.errors import UserError
from revformers.training import main_process as module
from revformers.training.main_process import on_main_process, refuse_once


class Process:
    """The main process or another one, and what the broadcast gives the others."""

    def __init__(self, monkeypatch, is_main_process, received=None):
        self.is_main_process = is_main_process
        self.sent = []
        monkeypatch.setattr(module, "PartialState", lambda: self)
        monkeypatch.setattr(module, "broadcast_object_list", lambda own: self.sent.append(own) or received or own)


def test_the_result_reaches_all_processes(monkeypatch):
    main = Process(monkeypatch, True)
    assert on_main_process(lambda: 7) == 7
    Process(monkeypatch, False, main.sent[0])
    assert on_main_process(lambda: pytest.fail("this is not the main process")) == 7


def test_an_error_of_any_kind_ends_the_other_processes(monkeypatch):
    """A process that waits for a broadcast that never comes hangs, unless its launcher kills it."""
    main = Process(monkeypatch, True)
    with pytest.raises(ZeroDivisionError):
        on_main_process(lambda: 1 / 0)
    Process(monkeypatch, False, main.sent[0])
    with pytest.raises(SystemExit) as stop:
        on_main_process(lambda: 1 / 0)
    assert stop.value.code == 2


def test_a_refusal_is_said_once_and_ends_the_other_processes(monkeypatch):
    main = Process(monkeypatch, True)
    with pytest.raises(UserError, match=r"^No\.$"):
        refuse_once("No.")
    Process(monkeypatch, False, main.sent[0])
    with pytest.raises(SystemExit):
        refuse_once("No.")
