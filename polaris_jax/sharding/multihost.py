"""Several processes at one run: how they find each other, agree, and share what the host knows.

Every process runs the same program on the same data. What a process does alone (sampling and judging its share) is
gathered in the order of the processes, so that afterwards all hold the same again; files are written by one of them.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import clusters, distributed  # neither the clusters nor the key-value store has a public name
from jax.experimental import multihost_utils

from polaris_jax.errors import LOST, UserError

_WAITS = itertools.count()
_AGAIN = "start all of them again: the run resumes from what is on disk"


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_s: int = 100,
) -> None:
    """Joins the other processes of the run, before any use of a device; does nothing where there is one alone.

    What is None is found by `jax.distributed` in the variables of SLURM, Open MPI, a Cloud TPU or GKE. coordinator:
    HOST:PORT of process 0. When a process dies, or is silent for `heartbeat_timeout_s`, the others end with exit code
    `errors.LOST`. Raises UserError where a part of this is missing.
    """
    if num_processes == 1 or ((coordinator, num_processes, process_id) == (None, None, None) and _is_alone()):
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            shutdown_timeout_seconds=heartbeat_timeout_s,
        )
    except ValueError as error:
        raise UserError(f"--coordinator, --num_processes, --process_id: {error}") from error
    # JAX aborts a process when the service that all beat to is gone or tells of a loss, and offers no hook before that.
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)


def _is_alone() -> bool:
    """Whether no cluster that JAX knows has started this process, or it alone."""
    kinds = (kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method)
    found = next((kind for kind in kinds if kind.is_env_present()), None)
    return found is None or found.get_process_count() == 1


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(_: int) -> None:
    words = f"error: another process of this run ended or fell silent (the lines above say what was seen); {_AGAIN}\n"
    os.write(2, words.encode())
    os._exit(LOST)


def leave(error: BaseException, code: int, *, heartbeat_timeout_s: int) -> None:
    """Ends this process with `code` where it is one of several and the others go on; else returns.

    The usual way out waits for the others, who would wait for this one. An error of a collective may be what the end of
    another process looks like from here: then this waits until that is certain, and the code is `errors.LOST`.
    """
    client, count = distributed.global_state.client, distributed.global_state.num_processes
    if client is None:
        return
    if code == 1:
        traceback.print_exception(error)
    try:
        if _all_arrive("leaving", within_s=3):
            return
        of_a_collective = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        end, everyone = time.monotonic() + (heartbeat_timeout_s + 5 if of_a_collective else 0), range(count)
        while not (lost := {*everyone} - {*client.get_live_nodes([*everyone])}) and time.monotonic() < end:
            time.sleep(1)
    except jax.errors.JaxRuntimeError:  # process 0, which answers these questions, is gone
        lost = {0}
    if lost:
        print(f"error: lost process {min(lost)} of {count}; {_AGAIN}", file=sys.stderr)
        code = LOST
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


class SharedFlag:
    """A flag that any process may set while each works at its own pace; all see it within a second.

    Every process makes the same flags in the same order. Unlike `any_process` it may be looked at any number of
    times, and the processes see it at different times.
    """

    _count = itertools.count()

    def __init__(self):
        self._key, self._set, self._looked = f"flag/{next(self._count)}", False, 0.0

    def set(self) -> None:
        """Sets it in all processes; safe to call from a signal handler."""
        self._set = True
        if client := distributed.global_state.client:
            client.key_value_increment(self._key, 1)

    def is_set(self) -> bool:
        """Whether any process has set it."""
        client, now = distributed.global_state.client, time.monotonic()
        if client and not self._set and now - self._looked > 0.5:
            self._looked, self._set = now, client.key_value_increment(self._key, 0) > 0
        return self._set


def wait_for_all(meanwhile: Callable[[], None] = lambda: None) -> None:
    """Returns when every process has called it as often as this one. meanwhile: called again and again until then.

    For work that takes each process another time, up to hours: unlike `barrier` it keeps no device waiting, and signals
    are handled meanwhile.
    """
    if jax.process_count() > 1:
        _all_arrive(f"wait/{next(_WAITS)}", meanwhile)


def _all_arrive(key: str, meanwhile: Callable[[], None] = lambda: None, *, within_s: float = math.inf) -> bool:
    """Waits until all processes have called it with the same new key, and says whether they did in time."""
    client, count = distributed.global_state.client, distributed.global_state.num_processes
    end, arrived = time.monotonic() + within_s, client.key_value_increment(key, 1)
    while arrived < count and time.monotonic() < end:
        meanwhile()
        time.sleep(0.02)
        arrived = client.key_value_increment(key, 0)
    return arrived == count


def share(items: Sequence[Any]) -> Sequence[Any]:
    """The items that this process works on; those of all processes together are all."""
    return items[jax.process_index() :: jax.process_count()]


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
