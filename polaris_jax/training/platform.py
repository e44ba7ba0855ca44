"""What an update does otherwise on one platform."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def _wait_for_memory(arrays: Any) -> None:
    """Waits until a batch is computed, and a moment longer, after which the CPU client has freed what it needed.

    Else the activations of several batches are in memory at once. Accelerators run batches one after the other in
    memory of one, and must find the next one queued.
    """
    jax.block_until_ready(arrays)
    time.sleep(5e-4)


def _queue_the_next(arrays: Any) -> None:
    """Returns at once."""


AFTER_BATCH: dict[str, Callable[[Any], None]] = {
    "cpu": _wait_for_memory, "gpu": _queue_the_next, "tpu": _queue_the_next,
}  # fmt: skip
