import os
import signal
import threading

import pytest

from revformers.cli.termination import Terminated, raised_on_termination


def test_the_signal_is_raised_in_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raised_on_termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_that_python_did_not_set_is_no_error(monkeypatch):
    """`signal.signal` then returns None, which it does not take."""
    set_handlers = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_handlers.append(handler))
    with raised_on_termination():
        pass
    assert set_handlers[1:] == [signal.SIG_DFL]


def test_another_thread_goes_on_without():
    entered = []

    def enter():
        with raised_on_termination():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]
