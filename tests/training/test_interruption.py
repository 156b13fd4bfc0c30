import contextlib
import os
import signal
import threading

import pytest
import torch
from transformers import TrainerControl

from revformers.training.interruption import SaveOnSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_checkpoint_and_the_end(number):
    before = signal.getsignal(number)
    control = TrainerControl()
    with SaveOnSignal() as interruption:
        interruption.on_step_end(None, None, control)
        assert not control.should_training_stop
        os.kill(os.getpid(), number)
        interruption.on_step_end(None, None, control)
    assert interruption.received == number
    assert control.should_save
    assert control.should_training_stop
    assert signal.getsignal(number) is before


def test_a_signal_while_the_processes_agree_is_shared_after_the_next_step(monkeypatch):
    control = TrainerControl()
    signals = [signal.SIGTERM]

    def all_reduce(shared, operator, group):
        if signals:
            os.kill(os.getpid(), signals.pop())

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with SaveOnSignal() as interruption:
        interruption._group = object()
        interruption.on_step_end(None, None, control)
        assert not control.should_training_stop  # the other processes do not know of it
        interruption.on_step_end(None, None, control)
    assert control.should_training_stop
    assert interruption.received == signal.SIGTERM


def test_the_second_signal_ends_at_once():
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with SaveOnSignal() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.received == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_launcher_that_passes_another_signal_on_asks_for_the_same(capfd):
    """Ctrl-C reaches torchrun and its processes; torchrun then sends them SIGTERM."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with SaveOnSignal() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.received == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert "Stopping after this step, with a checkpoint; press Ctrl-C again" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_handlers_are_set_is_a_request(number, monkeypatch):
    """In any moment of the beginning and of the end; the usual effect must not come before the block, nor stay out."""
    former = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)}
    set_handler, count = signal.signal, []

    def signal_after(which):
        def replaced(one, handler):
            before = set_handler(one, handler)
            count.append(one)
            if len(count) == which:
                os.kill(os.getpid(), number)
            return before

        return replaced

    try:
        for which in range(1, 5):
            count.clear()
            monkeypatch.setattr(signal, "signal", signal_after(which))
            interruption = SaveOnSignal()
            with contextlib.suppress(KeyboardInterrupt), interruption:
                pass
            restored = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
            assert restored == [signal.default_int_handler] * 2, which
    finally:
        monkeypatch.undo()
        for one, handler in former.items():
            signal.signal(one, handler)


def test_a_handler_that_python_did_not_set_is_replaced_by_the_default(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    try:
        with SaveOnSignal():
            pass
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_does_nothing_in_other_threads():
    failures = []

    def enter():
        try:
            with SaveOnSignal():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []
