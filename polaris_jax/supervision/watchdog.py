"""Heartbeats, and the watchdog that ends a job once there are none: something hangs.

Whoever makes progress calls `heartbeat`: the rollout engine between device calls, a loop at each phase of a step. What
it says is shown by whoever asked for it with `showing`, such as a progress bar, so that no function in between carries
it there. A program that is being compiled has no heartbeat, so that JAX's compiler on any thread's stack makes the
watchdog wait `PATIENCE` times as long; `patience` does the same for other calls without a heartbeat, such as saving.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from polaris_jax.errors import STUCK
from polaris_jax.supervision.preemption import preemptible

PATIENCE = 10
TICKS = 20  # looks within the time that is allowed
REPORT_S = 30.0  # for the report, which a file system that hangs must not hold up

States = dict[str, Callable[[], Any]]  # json-able states of the parts at work, by their names

_heartbeats = itertools.count()
_last = ["start", next(_heartbeats)]
_patient: list[object] = []  # blocks that are within `patience`
_shown_by: list[Callable[[str, int | None, int | None], None]] = []


def heartbeat(what: str | None = None, done: int | None = None, total: int | None = None) -> None:
    """Says that there is progress, and with what from now on; done: how much of the `total` there is of it.

    Any thread may call it.
    """
    _last[:] = _last[0] if what is None else what, next(_heartbeats)
    if what is not None:
        for show in tuple(_shown_by):  # a copy: another thread may come or go meanwhile
            show(what, done, total)


@contextmanager
def showing(show: Callable[[str, int | None, int | None], None]) -> Iterator[None]:
    """Within the block `show` is called with what each `heartbeat` says, in the thread that it is of."""
    _shown_by.append(show)
    try:
        yield
    finally:
        _shown_by.remove(show)


@contextmanager
def patience() -> Iterator[None]:
    """Within the block the watchdog waits `PATIENCE` times as long. The block's end is a heartbeat."""
    block = object()
    _patient.append(block)
    try:
        yield
    finally:
        heartbeat()
        _patient.remove(block)


@contextmanager
def supervised(config: ConfigDict, workdir: str | Path) -> Iterator[States]:
    """A job in `workdir`: `preemptible` for `config.training.grace_s`, and the watchdog.

    After `config.training.watchdog_minutes` without a `heartbeat` (0: never) all stacks and the states that the job has
    entered into the yielded dict go to stderr and WORKDIR/stuck.PROCESS.txt, and the process ends with `errors.STUCK`.
    """
    states: States = {}
    limit_s, done = 60 * config.training.watchdog_minutes, threading.Event()
    path = Path(workdir) / f"stuck.{jax.process_index()}.txt"
    watchdog = threading.Thread(target=_watch, args=(limit_s, path, states, done), name="watchdog", daemon=True)
    with preemptible(config.training.grace_s):
        if limit_s:
            watchdog.start()
        try:
            yield states
        finally:
            done.set()


def _watch(limit_s: float, path: Path, states: States, done: threading.Event) -> None:
    seen, idle = _last[1], 0  # looks are counted rather than seconds: a process that was stopped is not stuck
    while not done.wait(limit_s / TICKS):
        seen, idle = _last[1], idle + 1 if _last[1] == seen else 0
        if idle >= TICKS * (PATIENCE if _patient or compiling() else 1):
            _report(limit_s, path, states)


def compiling() -> str | None:
    """The program that JAX's compiler is at in any thread, such as "decode"; None where it is at none."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_filename.endswith("jax/_src/compiler.py"):
                name = str(frame.f_locals.get("module_name", "a program"))
                return name.removeprefix("jit_").strip("_") or name
            frame = frame.f_back
    return None


def _report(limit_s: float, path: Path, states: States) -> None:
    threading.Timer(REPORT_S, os._exit, (STUCK,)).start()
    text = f"watchdog: nothing moved for {limit_s:g} s; last: {_last[0]}\n"
    for name, state in states.items():
        try:
            text += f"{name}: {json.dumps(state())}\n"
        except Exception as error:  # a part in disorder must not hide the others
            text += f"{name}: {error!r}\n"
    _write(sys.__stderr__, text)
    try:
        with path.open("w", encoding="utf-8") as file:
            _write(file, text)
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.__stderr__)
    os._exit(STUCK)


def _write(file: Any, text: str) -> None:
    file.write(text)
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
