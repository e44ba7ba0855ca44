"""What a job shows of itself: a live view in a terminal, elsewhere lines at a bounded pace, from the first seconds on.

It is made of the heartbeats: what is done now, how much of it and how fast. Where no heartbeat can come, since JAX
compiles, that is said, with what is compiled and for how long. In a terminal the curves of a training run stand above.
"""

from __future__ import annotations

import itertools
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from polaris_jax.sharding.multihost import is_writer
from polaris_jax.supervision.watchdog import compiling, showing

TICK_S = 0.5  # between two looks
FIRST_S, EVERY_S = 5.0, 30.0  # without a terminal: the first line, and then at most one in so many seconds
COMPILING_S = 2.0  # a shorter compilation is not worth a word
STEPS = "steps"  # the heartbeat that counts the whole job; others count parts of a step
BARS, WIDTH = "▁▂▃▄▅▆▇█", 40  # of a curve, in characters

_displays: list[Shown] = []


@contextmanager
def display(title: str) -> Iterator[None]:
    """Within the block, what the heartbeats and `show_metrics` say is shown under this title; of several processes by
    one."""
    console = Console(quiet=not is_writer())
    shown = Shown(title)
    draw = _live if console.is_terminal else _lines
    with showing(shown.heard), in_background("progress", partial(draw, console, shown)):
        _displays.append(shown)
        try:
            yield
        finally:
            _displays.remove(shown)


@contextmanager
def in_background(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within the block `work(done)` runs in a thread; the block's end sets `done` and waits until it has returned."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def show_metrics(metrics: Mapping[str, float]) -> None:
    """Adds a step's values, where they are finite, to the curves of the live view; not every step has each metric."""
    for shown in _displays:
        for name, value in metrics.items():
            if math.isfinite(value):
                shown.curves.setdefault(name, []).append(value)


@dataclass
class Count:
    """How much of a total is done, and since when it is counted, to tell its rate."""

    done: int
    total: int
    first: int
    since: float

    def words(self, what: str, now: float) -> str:
        """Such as "226 of 1,024 rollouts, 12.3/s, 1:05 left"; without rate before anything is done."""
        text = f"{self.done:,} of {self.total:,} {what}"
        if self.done <= self.first or now <= self.since:
            return text
        rate = (self.done - self.first) / (now - self.since)
        speed = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:,.1f}/min"
        return f"{text}, {speed}, {clock((self.total - self.done) / rate)} left"


class Shown:
    """What is to be shown now, as text. Heartbeats come from any thread."""

    def __init__(self, title: str):
        self._title, self._began = title, time.monotonic()
        self._what, self._counts = "loading", {}
        self.curves: dict[str, list[float]] = {}
        self._program, self._compiling_since = None, 0.0

    def heard(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """Takes in a heartbeat."""
        if total is not None:
            count, now = self._counts.get(what), time.monotonic()
            again = count is None or total != count.total or done < count.done
            self._counts[what] = Count(done, total, *((done, now) if again else (count.first, count.since)))
        self._what = what

    def count(self) -> Count | None:
        """What a bar shows: the job's steps, or what is counted instead."""
        return self._counts.get(STEPS) or self._counts.get(self._what)

    def text(self) -> str:
        """The line of this moment."""
        now, what = time.monotonic(), self._what
        parts = [self._counts[STEPS].words(STEPS, now)] if STEPS in self._counts else []
        if what != STEPS:
            parts.append(self._counts[what].words(what, now) if what in self._counts else what)
        program = compiling()
        if program != self._program:
            self._program, self._compiling_since = program, now
        if program is not None and now - self._compiling_since >= COMPILING_S:
            parts.append(f"compiling {program} (first time, {now - self._compiling_since:.0f} s so far)")
        return f"{self._title} {clock(now - self._began)}  {'; '.join([*parts, memory()])}"


def clock(seconds: float) -> str:
    """Such as 1:05 or 2:03:04."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def memory() -> str:
    """The first device's memory in use where it has its own, else this process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return f"{stats['bytes_in_use'] / 2**30:.1f} of {stats['bytes_limit'] / 2**30:.1f} GiB"
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return f"{pages * resource.getpagesize() / 2**30:.1f} GiB"
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def _lines(console: Console, shown: Shown, done: threading.Event) -> None:
    due = time.monotonic() + FIRST_S
    while not done.wait(TICK_S):
        text = shown.text()  # each time: this is also the look at the compiler
        if time.monotonic() >= due:
            due = time.monotonic() + EVERY_S
            with suppress(OSError):  # of a log file on a full disk
                console.print(text, markup=False, highlight=False, soft_wrap=True)


def _live(console: Console, shown: Shown, done: threading.Event) -> None:
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=console)
    task = bar.add_task("", total=None)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not done.wait(TICK_S):
            count = shown.count()
            counted = {"completed": count.done, "total": count.total} if count else {}
            bar.update(task, description=shown.text(), **counted)
            live.update(Group(curves_table(shown.curves), bar) if shown.curves else bar, refresh=True)


def curves_table(curves: Mapping[str, list[float]]) -> Table:
    """The metrics of a run so far: each as a curve between its lowest and highest value, the newest value last."""
    table = Table("", "first to last step", "lowest", "highest", "now", box=None, header_style="dim")
    for name, values in list(curves.items()):
        ends = (f"{value:,.4g}" for value in (min(values), max(values), values[-1]))
        table.add_row(name.replace("_", " "), sparkline(values), *ends)
    return table


def sparkline(values: list[float]) -> str:
    """The values as a row of at most `WIDTH` bars; where there are more of them, each bar is the mean of its part."""
    width = min(WIDTH, len(values))
    edges = [len(values) * i // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, spread = min(means), (max(means) - min(means)) or 1.0
    return "".join(BARS[min(int((mean - low) / spread * len(BARS)), len(BARS) - 1)] for mean in means)
