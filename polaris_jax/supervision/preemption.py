"""SIGTERM, as schedulers send it before they take a machine away: the run saves and ends in time, with its own code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from polaris_jax.errors import PREEMPTED
from polaris_jax.sharding.multihost import any_process

_requested = threading.Event()


class Preempted(SystemExit):
    """SIGTERM came; the code that it ends a script with is `errors.PREEMPTED`."""

    def __init__(self):
        super().__init__(PREEMPTED)


@contextmanager
def preemptible(grace_s: float) -> Iterator[None]:
    """Within the block SIGTERM makes the next `check` raise, and ends the process at the latest `grace_s` later.

    The last resort loses nothing that a resume cannot do again: checkpoints are atomic, and finished rollouts are in
    their journal. Python runs signal handlers between two bytecodes of the main thread only, so a thread of its own
    hears of the signal, also while that waits for a compilation. Does nothing in other threads than the main one, and
    inside another such block.
    """
    outer = threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _heard
    if outer:
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    last_resort = threading.Timer(grace_s, os._exit, (PREEMPTED,))
    last_resort.daemon = True
    listener = threading.Thread(target=_listen, args=(read, last_resort), name="preemption", daemon=True)
    before, wakeup = signal.signal(signal.SIGTERM, _heard), signal.set_wakeup_fd(write)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(write)  # ends the listener
        listener.join()
        last_resort.cancel()
        _requested.clear()


def requested() -> bool:
    """Whether SIGTERM has come to this process; of several perhaps not yet to the others, so `check` decides."""
    return _requested.is_set()


def check() -> None:
    """Raises Preempted when SIGTERM has come to any process. All call it, where everything worth keeping is kept."""
    if any_process(requested()):
        raise Preempted


def _heard(number: int, frame: object) -> None:
    _requested.set()


def _listen(read: int, last_resort: threading.Timer) -> None:
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] == signal.SIGTERM and not last_resort.is_alive():
                _requested.set()
                print(f"SIGTERM: saving, at most {last_resort.interval:g} s", file=sys.stderr, flush=True)
                last_resort.start()
