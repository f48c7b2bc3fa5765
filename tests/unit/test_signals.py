"""Signals as messages: in their order, however many, and the program has its own way of being woken back afterwards."""

import os
import signal

import pytest

from workers.signals import SignalInbox


def test_the_oldest_is_taken_first() -> None:
    with SignalInbox() as inbox:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

        assert [inbox.take(), inbox.take(), inbox.take()] == [signal.SIGINT, signal.SIGTERM, None]


def test_more_than_the_pipe_holds_are_noted_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with SignalInbox() as inbox:
        with pytest.raises(BlockingIOError):
            while True:
                os.write(inbox._write_end, bytes(4096))
        signal.raise_signal(signal.SIGTERM)

        assert inbox.take() == signal.SIGTERM

    assert capfd.readouterr().err == ""


def test_who_was_woken_by_signals_before_is_so_again() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        with SignalInbox(), SignalInbox():
            pass
    finally:
        woken = signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)

    assert woken == write_end
