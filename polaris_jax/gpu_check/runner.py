"""Which check comes next, each in a process of its own, and the file from which a second start resumes.

This process leaves the device alone, whose memory the checks need.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polaris_jax.errors import UserError
from polaris_jax.files import Journal
from polaris_jax.gpu_check import kernels
from polaris_jax.gpu_check.sizes import SIZES, Size

MEMORY_SHARE = "0.94"  # of the device that XLA may use; its default is 0.75


@dataclass(frozen=True)
class Result:
    """One finished check. status: ok, failed (what must hold does not), does not fit, or error (see its log)."""

    check: str
    status: str
    seconds: float
    values: dict[str, Any]
    note: str


@dataclass(frozen=True)
class CheckResults:
    """machine: what `checks.machine` found. size: of `SIZES`. results: so far. complete: whether that is all."""

    machine: dict[str, Any]
    size: str
    results: list[Result]
    complete: bool


def run(
    workdir: str | Path, size: str = "", budget_s: float = 0.0, announce: Callable[[str], None] = print
) -> CheckResults:
    """Runs the checks of a size that `workdir` has no result of: "tiny", "4b", or "" for what suits the machine.

    budget_s: starts no check that might not end within so many seconds from now; 0: goes on to the end. Appends each
    result to results.jsonl; what a check said else is in logs/. Raises UserError where `workdir` has results of another
    machine or size, or the budget is too small for any check.
    """
    workdir, began = Path(workdir), time.monotonic()
    if size and size not in SIZES:
        raise UserError(f"--size: expected one of {', '.join(SIZES)}, found {size!r}")
    machine = start("machine", size or "tiny", workdir).values
    if not machine:
        raise UserError(f"JAX found no device: see {workdir}/logs/machine.txt")
    if not size:
        size = "tiny" if machine["platform"] == "cpu" else "4b"
        announce(f"{machine['device']}: size {size}" + ", since JAX sees no accelerator" * (size == "tiny"))
    limit_s = SIZES[size].limit_s
    if 0 < budget_s < limit_s:
        raise UserError(f"--budget_s: a check of size {size} may take {limit_s:.0f} s, found {budget_s:g}")
    with Journal(workdir / "results.jsonl", {"size": size} | machine, Result) as journal:
        results = journal.records
        while name := next_check(SIZES[size], machine["platform"], {r.check: r.status for r in results}):
            if budget_s and time.monotonic() - began + limit_s > budget_s:
                break
            result = start(name, size, workdir)
            announce(f"{name}: {result.status}, {result.seconds:.0f} s {result.note}")
            journal.write(result)
            results.append(result)
    return CheckResults(machine, size, results, name is None)


def start(check: str, size: str, workdir: Path) -> Result:
    """Runs a check to its end in a process of its own, or kills it after the size's limit."""
    log = workdir / "logs" / f"{check.replace('/', '-')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "polaris_jax.gpu_check", check, size, str(workdir / "compilation_cache")]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY_SHARE} | os.environ
    began, limit_s = time.monotonic(), SIZES[size].limit_s
    with log.open("w", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, timeout=limit_s
            )
            note = f"exit code {done.returncode}: see {log}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            note = f"not done after {limit_s:.0f} s"
    found = {"status": "error", "values": {}, "note": note} if note else json.loads(done.stdout.splitlines()[-1])
    return Result(check=check, seconds=round(time.monotonic() - began, 1), **found)


def next_check(size: Size, platform: str, done: Mapping[str, str]) -> str | None:
    """The first check that is not in `done` (name -> status), or None."""
    names = ["speed", *(f"kernel/{name}" for name in kernels.names(platform)), "gap/bfloat16", "gap/float16"]
    names += [f"rollout/{context}x{slots}" for context, slots in size.rollouts]
    names += [f"update/{length}" for length in size.updates] + ["step"]
    if missing := [name for name in names if name not in done]:
        return missing[0]
    lengths = {int(name.partition("/")[2]): done[name] == "ok" for name in done if name.startswith("longest/")}
    length = next_length(size, lengths)
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
