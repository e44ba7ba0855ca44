"""Rollouts on disk until a checkpoint holds what was trained on them, so that a restart does not sample them again.

WORKDIR/rollouts/STEP.PROCESS            what this process sampled for the update behind STEP
WORKDIR/rollouts/STEP.PROCESS.verdicts   what its verifier said of them (`rewards/kept.py`)

A step whose sampling was complete is so repeated to the bit. Where SIGTERM or Ctrl-C ended the sampling, the finished
rollouts are kept too; the others are sampled beside fewer neighbours then, which gives the same tokens, but may move
the last bits of a recorded log-prob. A step killed outright while it sampled is sampled anew, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from polaris_jax.files import write_whole
from polaris_jax.rollout.codec import from_bytes, to_bytes
from polaris_jax.rollout.engine import RolloutEngine
from polaris_jax.rollout.sampling import Sampling
from polaris_jax.types import Prompt, Rollout


def stored(
    engine: RolloutEngine,
    params: Any,
    prompts: Sequence[Prompt],
    samples: int,
    sampling: Sampling,
    seed: int,
    path: Path | None,
) -> Iterator[Rollout]:
    """The rollouts of `engine.generate`, those that a call with the same arguments kept at `path` first; all are kept.

    path: None keeps nothing.
    """
    if path is None:
        yield from engine.generate(params, prompts, samples, sampling, seed)
        return
    address = {"seed": seed, "sampling": asdict(sampling), "samples": samples, "params": fingerprint(params)}
    resumed, finished = load(path, address), []
    try:
        for rollout in engine.generate(params, prompts, samples, sampling, seed, resumed=resumed):
            finished.append(rollout)
            yield rollout
    finally:
        if len(finished) > len(resumed):
            keep(path, address, finished)


def keep(path: Path, address: dict[str, Any], rollouts: Sequence[Rollout]) -> None:
    """Writes the file, whole or not at all; says so on stderr where there is no room."""
    body = to_bytes(rollouts)
    head = json.dumps({"address": address, "sha256": hashlib.sha256(body).hexdigest()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, head.encode() + b"\n" + body)
    except OSError as error:
        print(f"{path}: rollouts not kept: {error.strerror}", file=sys.stderr)


def load(path: Path, address: dict[str, Any]) -> list[Rollout]:
    """The rollouts of `keep`; none where the file is missing, damaged or of another address."""
    if not path.exists():
        return []
    head, _, body = path.read_bytes().partition(b"\n")
    expected = {"address": address, "sha256": hashlib.sha256(body).hexdigest()}
    return from_bytes(body) if head == json.dumps(expected).encode() else []


def forget(workdir: Path) -> None:
    """Removes the rollouts and verdicts that were kept for the steps before the newest checkpoint."""
    saved = max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)
    for path in (workdir / "rollouts").glob("[0-9]*.*"):
        if int(path.name.split(".")[0]) < saved:
            path.unlink(missing_ok=True)


def fingerprint(params: Any) -> str:
    """A hash of all bits of float32 parameters, the same however they lie on devices."""
    return hashlib.sha256(str(jax.device_get(_sums(params))).encode()).hexdigest()


@jax.jit
def _sums(params: Any) -> list[jax.Array]:
    return [jnp.sum(jax.lax.bitcast_convert_type(leaf, jnp.uint32)) for leaf in jax.tree.leaves(params)]
