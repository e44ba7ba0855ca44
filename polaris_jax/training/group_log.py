"""A few groups of each step, kept with what sampler and trainer say of every token, for the run's report.

WORKDIR/groups/STEP.npz   the first `config.training.log_samples` groups of the step that ended as STEP: rollouts as in
                          `rollout/codec.py`, and beside their log-probs, flat in the same order, float16:
                          gaps        nats, the trainer's log-prob of the token minus the sampler's
                          entropies   nats, of the trainer's distribution at the token

The directory stays below `MOST_BYTES`: where it would pass that, steps that are no multiple of 2 are removed, then of
4, and so on, so that what is left is spread evenly over the run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.files import staged
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.rl.packing import from_rollouts, pack
from polaris_jax.rollout.codec import (
    COMPACT,
    groups_from_json,
    groups_to_json,
    rollouts_from_arrays,
    rollouts_to_arrays,
)
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.sharding.rows import put_rows, row_groups
from polaris_jax.types import Group

MOST_BYTES = 2**28


class LoggedGroup(NamedTuple):
    """group: as it was sampled. reasons: of the verdicts. gaps, entropies: float [response] of each rollout, nats."""

    group: Group
    reasons: tuple[str, ...]
    gaps: tuple[np.ndarray, ...]
    entropies: tuple[np.ndarray, ...]


def look(
    logprobs: Callable,
    params: Any,
    groups: Sequence[Group],
    reasons: Sequence[Sequence[str]],
    config: ConfigDict,
    temperature: float,
    mesh: Mesh,
) -> list[LoggedGroup]:
    """One forward pass of the trainer over whole groups. Every process calls it.

    logprobs: of `make_logprobs`, jitted, with results on every device. params: those that the groups were sampled from.
    reasons: of the verdicts, group by group. The packed rows have the shapes of the update's.
    """
    # Each trained token carries the number of its rollout where its advantage would be, which says whose it is.
    numbers_NG = 1 + np.arange(sum(len(group.rollouts) for group in groups), dtype=np.float32)
    numbers_NG = numbers_NG.reshape(len(groups), -1)
    alone = alone_in_rows(mesh, config.model.dtype)
    batches, _ = pack(from_rollouts(groups, numbers_NG), config.updates, groups=row_groups(mesh), alone=alone)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for batch in batches:
        if batch.mask.any():
            values = jax.device_get(logprobs(params, put_rows(batch, mesh), np.float32(temperature)))
            current_RT, entropy_RT = (value[: len(batch.mask)] for value in values)
            for number in np.unique(batch.advantages[batch.mask > 0]):
                mine_RT = batch.advantages == number
                found[int(number)] = (current_RT - batch.behaviour_logprobs)[mine_RT], entropy_RT[mine_RT]
    looked = []
    for group, why, numbers in zip(groups, reasons, numbers_NG, strict=True):
        gaps, entropies = zip(*(found[int(number)] for number in numbers), strict=True)
        looked.append(LoggedGroup(group, tuple(map(str, why)), gaps, entropies))
    return looked


def keep(workdir: Path, step: int, looked: Sequence[LoggedGroup]) -> None:
    """Writes the groups of the step that ended as `step`, in one process; says so on stderr where there is no room."""
    if not is_writer():
        return
    rollouts = [rollout for one in looked for rollout in one.group.rollouts]
    judged = groups_to_json([one.group for one in looked])
    heads = [[*head, one.reasons] for head, one in zip(judged, looked, strict=True)]
    with np.errstate(over="ignore"):  # to infinity, which the report shows as such
        arrays = rollouts_to_arrays(rollouts, COMPACT)
        arrays |= {"gaps": _flat(one.gaps for one in looked), "entropies": _flat(one.entropies for one in looked)}
    directory = workdir / "groups"
    try:
        directory.mkdir(exist_ok=True)
        with staged(directory / f"{step}.npz") as staging:
            np.savez_compressed(staging, groups=np.frombuffer(json.dumps(heads).encode(), np.uint8), **arrays)
        _thin(directory)
    except OSError as error:
        print(f"{directory}: groups not kept: {error.strerror}", file=sys.stderr)


def logged_steps(workdir: Path) -> list[int]:
    """The steps of which there are groups."""
    return sorted(int(path.stem) for path in (workdir / "groups").glob("[0-9]*.npz"))


def load(workdir: Path, step: int) -> list[LoggedGroup]:
    """The groups of `keep`, log-probs in float16. Raises UserError where the file is damaged or something else."""
    path = workdir / "groups" / f"{step}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        heads = json.loads(arrays.pop("groups").tobytes())
        gaps, entropies = arrays.pop("gaps"), arrays.pop("entropies")
        rollouts = rollouts_from_arrays(arrays, COMPACT)
        ends = np.cumsum([len(rollout.tokens) for rollout in rollouts])[:-1]
        rest = zip(rollouts, np.split(gaps, ends), np.split(entropies, ends), strict=True)
        looked = []
        for group, (*_, reasons) in zip(groups_from_json([head[:3] for head in heads], rollouts), heads, strict=True):
            _, *values = zip(*islice(rest, len(group.rewards)), strict=True)
            looked.append(LoggedGroup(group, tuple(reasons), *values))
    except Exception as error:  # of many kinds, since np.load opens whatever the file looks like
        raise UserError(f"{path}: expected groups of a run; {error}") from error
    return looked


def _flat(parts: Any) -> np.ndarray:
    return np.concatenate([array for arrays in parts for array in arrays], dtype=np.float16)


def _thin(directory: Path) -> None:
    sizes = {int(path.stem): path.stat().st_size for path in directory.glob("[0-9]*.npz")}
    every = 1
    while len(sizes) > 1 and sum(sizes.values()) > MOST_BYTES:
        every *= 2
        for step in [step for step in sizes if step % every]:
            del sizes[step]
            (directory / f"{step}.npz").unlink(missing_ok=True)
