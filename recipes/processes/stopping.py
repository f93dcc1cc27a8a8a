"""Signals that stop a command: the first in good order, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

from recipes.processes.host_process import kill_running

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal asked us to stop; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop_on_signals() -> None:
    """Let a signal stop what runs in good order, a second one at once."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
            signal.signal(number, _stop)
    sys.unraisablehook = _send_again


def _send_again(lost: UnraisableHookArgs) -> None:
    """Where a signal came while an object was finalised, Python passes over what it raised."""
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)
        return
    stop_on_signals()
    # Later and from outside: an exception raised in here would be passed over, too.
    threading.Timer(0.05, os.kill, (os.getpid(), lost.exc_value.number)).start()


def _stop(number: int, frame: FrameType | None) -> None:
    for each in STOPPING:
        signal.signal(each, _stop_at_once)
    # A terminal that goes tells its processes so twice, by its shell and by the kernel.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Stopped(number)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """Ends everything at the second signal, of whatever kind, without saving."""
    kill_running()
    text = "stopped at once by a second signal; the same command continues from the last save\n"
    # Not print: the signal may have come in the middle of one, and buffered writers refuse to be
    # entered twice.
    os.write(2, text.encode())
    os._exit(128 + number)
