"""Ctrl-C and SIGTERM take effect between device calls, when nothing that is finished can be lost."""

from __future__ import annotations

import signal
import threading


class DeferredSignals:
    """Holds SIGINT and SIGTERM back inside the block; `deliver` then gives them to the handlers of before.

    Python delivers signals to the main thread only; in other threads it does nothing.
    """

    def __init__(self):
        self._pending: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda n, _: self._pending.append(n))
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether a signal came that is not delivered yet."""
        return bool(self._pending)

    def deliver(self) -> None:
        """Raises the signals that came."""
        for number in dict.fromkeys(self._pending):
            signal.raise_signal(number)
