"""Several processes at one run: how they find each other, agree, and share what the host knows.

Every process runs the same program on the same data. What a process does alone (sampling and judging its share) is
gathered in the order of the processes, so that afterwards all hold the same again; files are written by one of them.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_writer() -> bool:
    """Whether this process writes the files that the run has once. (Orbax checkpoints are saved by all together.)"""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has called it with the same name."""
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process: how all take the same decision where each saw something else.

    A signal, a full disk or a clock reaches one process and not the others. One that acted on it alone would leave the
    others waiting for it in the next collective; so ask at a place that every process passes equally often, such as
    once between two steps, and act on the answer:

        if multihost.any_process(stop_requested()):
            save(...)

    Never call it behind a condition that may differ between processes (`if flag and any_process(flag)` hangs).
    """
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather(value: Any) -> list[Any]:
    """The json-able `value` of every process, in the order of the processes. Every process calls it."""
    return [json.loads(data) for data in gather_bytes(json.dumps(value).encode())]


def gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of every process, in the order of the processes. Every process calls it."""
    if jax.process_count() == 1:
        return [data]
    sizes_P = multihost_utils.process_allgather(np.array(len(data))).reshape(-1)
    padded = np.zeros(1 << (int(sizes_P.max()) - 1).bit_length(), np.uint8)  # few lengths: each compiles a program
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    return [everyone[i, :size].tobytes() for i, size in enumerate(sizes_P)]
