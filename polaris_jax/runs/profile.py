"""Traces of JAX's profiler, and the device time in them by kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Kernel(NamedTuple):
    """name: of a kernel, or of the operation of a program where no accelerator is traced. module: its program."""

    name: str
    module: str
    calls: int
    seconds: float


def traced_step(workdir: Path, step: int, steps: Sequence[int]) -> AbstractContextManager:
    """Writes a trace to WORKDIR/profile/step-STEP where `steps`, first and last or nothing, has `step` in it."""
    if not steps or not steps[0] <= step <= steps[1]:
        return nullcontext()
    return jax.profiler.trace(workdir / "profile" / f"step-{step:06}")


def kernels(folder: str | Path) -> list[Kernel]:
    """The kernels of all traces below `folder`, the ones that took most first.

    On TPUs the time of a loop contains that of the operations in it.
    """
    calls, seconds = Counter(), Counter()
    for path in sorted(Path(folder).rglob("*.xplane.pb")):
        for event in _device_events(jax.profiler.ProfileData.from_file(str(path))):
            key = event.name, _module(event) or ""
            calls[key] += 1
            seconds[key] += event.duration_ns / 1e9
    return [Kernel(*key, calls[key], spent) for key, spent in seconds.most_common()]


def _device_events(data: Any) -> Iterator[Any]:
    planes = [plane for plane in data.planes if plane.name.startswith(("/device:GPU", "/device:TPU"))]
    for plane in planes:
        for line in plane.lines:
            if line.name.startswith("Stream") or line.name == "XLA Ops":
                yield from line.events
    for plane in [] if planes else data.planes:  # without an accelerator operations run in threads of the host
        for line in plane.lines:
            yield from (event for event in line.events if _module(event) is not None)


def _module(event: Any) -> str | None:
    return next((value for name, value in event.stats if name == "hlo_module"), None)
