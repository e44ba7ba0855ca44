"""Which check comes next, all in this process, and the file from which a second start resumes."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from polaris_jax.errors import UserError
from polaris_jax.files import Journal, read_steps
from polaris_jax.gpu_check import kernels, peer
from polaris_jax.gpu_check.checks import CHECKS, Bench
from polaris_jax.gpu_check.sizes import SIZES, Size
from polaris_jax.runs.compilation import enable_compilation_cache

MEMORY_SHARE = "0.94"  # of the device that XLA may use; its default is 0.75


@dataclass(frozen=True)
class Result:
    """One finished check. status: ok, failed (what must hold does not), does not fit, skipped, or error (see logs)."""

    check: str
    status: str
    seconds: float
    values: dict[str, Any]
    note: str


@dataclass(frozen=True)
class Options:
    """size: "tiny", "4b", or "" for what suits the machine. budget_s: 0: no limit; else what is not done in so many
    seconds is left to a second start. peer: torch beside the updates. profile: device time by kernel, too."""

    size: str = ""
    budget_s: float = 0.0
    peer: bool = False
    profile: bool = False


@dataclass(frozen=True)
class CheckResults:
    """machine: platform, device, JAX. size: of `SIZES`. results: so far. complete: whether that is all."""

    machine: dict[str, Any]
    size: str
    results: list[Result]
    complete: bool


_compile_seconds: list[float] = []


def _listen(event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compile_seconds.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


def run(
    workdir: str | Path, options: Options, announce: Callable[[str], None], finish: Callable[[CheckResults], int]
) -> CheckResults:
    """Makes the checks that `workdir` has no result of, the most important first.

    Each result is announced and appended to results.jsonl as it comes; tracebacks are in logs/. finish: prints what was
    found and returns the exit code; called here, where a check does not end in time and so has to end the process.
    Raises UserError where `workdir` has results of another machine or size.
    """
    workdir, deadline = Path(workdir), time.monotonic() + (options.budget_s or math.inf)
    if options.size and options.size not in SIZES:
        raise UserError(f"--size: expected one of {', '.join(SIZES)}, found {options.size!r}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_SHARE)
    of_peer = _peer(workdir, options, deadline) if options.peer else []  # before JAX takes the device's memory
    device = jax.devices()[0]
    machine = {"platform": device.platform, "device": device.device_kind, "devices": len(jax.devices())}
    machine |= {"jax": jax.__version__}
    name = options.size or ("tiny" if device.platform == "cpu" else "4b")
    announce(f"{device.device_kind}: size {name}" + ", since JAX sees no accelerator" * (device.platform == "cpu"))
    enable_compilation_cache(workdir / "compilation_cache")

    size, check, alive = SIZES[name], None, True
    with Journal(workdir / "results.jsonl", {"size": name} | machine, Result) as journal:
        results, earlier = journal.records, {result.check: result.values for result in journal.records}
        bench = Bench(size, workdir / "profile", earlier)

        def record(result: Result) -> None:
            journal.write(result)
            results.append(result)
            earlier[result.check] = result.values
            announce(f"{result.check}: {result.status}, {result.seconds:.0f} s, {found(result)}")

        def give_up(check: str, limit_s: float) -> NoReturn:
            note = f"not done after {limit_s:.0f} s"
            announce(f"{check}: {note}; the same command resumes")
            if limit_s == size.limit_s:  # else it was the budget that ended
                record(Result(check, "error", limit_s, {}, note))
            os._exit(finish(CheckResults(machine, name, results, False)))

        for result in of_peer:
            record(result)
        while alive and (check := next_check(size, device.platform, options, results)):
            left_s = deadline - time.monotonic()
            if left_s <= size.least_s:
                break
            with _limited(min(size.limit_s, left_s), partial(give_up, check)):
                result = attempt(bench, check, workdir / "logs")
            record(result)
            alive = result.status != "error" or _answers(device)
    if not alive:
        announce("the device answers no more: the same command resumes in a new process")
    return CheckResults(machine, name, results, alive and not check)


def attempt(bench: Bench, check: str, logs: Path) -> Result:
    """Makes one check. An error becomes its result: one line in the note, the traceback in a file of `logs`."""
    kind, _, argument = check.partition("/")
    began, status, note, values = time.monotonic(), "ok", "", {}
    _compile_seconds.clear()
    try:
        holds, values = CHECKS[kind](bench, argument)
        status = "ok" if holds else "failed"
    except Exception as error:
        status = "does not fit" if _no_memory(error) else "error"
        note = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{check.replace('/', '-')}.txt").write_text(traceback.format_exc(), encoding="utf-8")
    gc.collect()  # arrays that only cycles hold would take the next check's memory
    bench.forget_broken()
    longest = {"longest_compile_s": max(_compile_seconds, default=0.0)} if status in ("ok", "failed") else {}
    return Result(check, status, round(time.monotonic() - began, 1), values | longest, note)


def next_check(size: Size, platform: str, options: Options, results: list[Result]) -> str | None:
    """The first check without a result, or None."""
    done = {result.check: result.status for result in results}
    ours = kernels.names(platform)
    first = [name for use in ("decode", "training") for name in ours if name.endswith(use)]
    names = ["ceilings", *(f"kernel/{name}" for name in first)]
    names += [f"rollout/{context}x{slots}" for context, slots in size.rollouts]
    names += ["gap/bfloat16", "gap/float16", *(f"update/{length}" for length in size.updates), "apply", "step"]
    names += ["profile/decode", "profile/update"] * options.profile
    names += [f"kernel/{name}" for name in ours if name not in first]
    names += [f"heads/{name}" for name in ours if size.heads[1:]]
    names += [f"rollout/{context}x{slots}" for context, slots in size.more_rollouts]
    names += [f"update/{length}" for length in size.more_updates]
    if missing := [name for name in names if name not in done]:
        return missing[0]
    tried = {int(name.partition("/")[2]): done[name] == "ok" for name in done if name.startswith("longest/")}
    length = next_length(size, tried)
    return f"longest/{length}" if length else None


def next_length(size: Size, trained: Mapping[int, bool]) -> int | None:
    """The next row length to try, by doubling and then by halving the gap, or None when the longest is known.

    trained: for each length tried so far whether it trained.
    """
    low = max((length for length, ok in trained.items() if ok), default=0)
    high = min((length for length, ok in trained.items() if not ok), default=math.inf)
    if high == math.inf:
        return None if low >= size.longest else min(2 * low, size.longest) or size.shortest
    middle = (low + high) // 2 // size.step * size.step
    return middle if middle > low else None


def found(result: Result) -> str:
    """What was measured, and the note, on one line."""
    values = [f"{name} {number(value)}" for name, value in result.values.items()]
    return ", ".join(values + [result.note] * bool(result.note))


def number(value: object) -> str:
    """Three digits of a number; other values as they are."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


@contextmanager
def _limited(seconds: float, give_up: Callable[[float], NoReturn]) -> Iterator[None]:
    """Calls `give_up(seconds)` in another thread where the block takes longer: a compilation hears no exception."""
    timer = threading.Timer(seconds, give_up, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _peer(workdir: Path, options: Options, deadline: float) -> list[Result]:
    if any(row.get("check", "").startswith("peer") for row in read_steps(workdir / "results.jsonl")[0]):
        return []
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        return [Result("peer", "skipped", 0.0, {}, f"not installed: {', '.join(missing)}")]
    began, limit_s = time.monotonic(), SIZES["4b"].limit_s
    found = list(peer.measure(options.size, min(limit_s, deadline - began)))
    seconds = round((time.monotonic() - began) / max(len(found), 1), 1)
    return [Result(name, "error" if error else "ok", seconds, values, error) for name, values, error in found]


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _answers(device: jax.Device) -> bool:
    try:
        return bool(jax.device_put(jnp.ones(()), device) + 1 == 2)
    except Exception:  # whatever it says: an error that a device does not recover from fails every call
        return False
