"""How many programs were compiled: shapes come from few buckets, so that after some steps the count stays still."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps


class Compilations:
    """How often its functions were traced, and so compiled, so far."""

    def __init__(self):
        self.count = 0

    def of(self, function: Callable) -> Callable:
        """The function, to be jitted."""

        @wraps(function)
        def call(*args):
            self.count += 1
            return function(*args)

        return call
