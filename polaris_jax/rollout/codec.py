"""Rollouts as a few flat arrays: in checkpoints, in the rollout store and on their way between processes.

heads          uint8, json: of each rollout [problem_id, sample, finish_reason, shapes], where shapes are those of its
               arrays in the order of `DTYPES`, null for one that it does not have
prompt_tokens  int32, of all rollouts one behind the other; the other arrays of `DTYPES` likewise, flat

The rescue's solutions are `COMPACT`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import jax
import numpy as np

from polaris_jax.rollout.records import DetailedRollout
from polaris_jax.sharding.multihost import gather_bytes
from polaris_jax.types import Group, Rollout, problem_from_json

DTYPES = {
    "prompt_tokens": np.int32,
    "tokens": np.int32,
    "logprobs": np.float32,
    "untempered_logprobs": np.float32,
    "alternative_ids": np.int32,
    "alternative_logprobs": np.float32,
}
COMPACT = DTYPES | {"logprobs": np.float16}
OPTIONAL = frozenset(DTYPES) - {"prompt_tokens", "tokens", "logprobs"}


def rollouts_to_arrays(rollouts: Sequence[Rollout], dtypes: Mapping[str, type] = DTYPES) -> dict[str, np.ndarray]:
    """The arrays above, none of them empty; no arrays where there are no rollouts. dtypes: those of the rollouts."""
    heads, parts = [], {name: [] for name in DTYPES}
    for rollout in rollouts:
        found = {name: getattr(rollout, name, None) for name in DTYPES}
        shapes = [None if array is None else array.shape for array in found.values()]
        heads.append([rollout.problem_id, rollout.sample, rollout.finish_reason, shapes])
        for name, array in found.items():
            if array is not None and array.size:
                parts[name].append(array.reshape(-1))
    if not heads:
        return {}
    flat = {name: np.concatenate(each, dtype=dtypes[name]) for name, each in parts.items() if each}
    return {"heads": np.frombuffer(json.dumps(heads).encode(), np.uint8), **flat}


def rollouts_from_arrays(arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, type] = DTYPES) -> list[Rollout]:
    """The rollouts of `rollouts_to_arrays` with the same dtypes, to the bit."""
    if not arrays:
        return []
    flat = {name: np.asarray(arrays.get(name, ()), dtype) for name, dtype in dtypes.items()}
    rollouts, taken = [], dict.fromkeys(DTYPES, 0)
    for problem_id, sample, finish_reason, shapes in json.loads(np.asarray(arrays["heads"]).tobytes()):
        fields = {}
        for name, shape in zip(DTYPES, shapes, strict=True):
            if shape is not None:
                begin, taken[name] = taken[name], taken[name] + math.prod(shape)
                # a copy: a rollout that is kept for long must not keep those of its neighbours in memory
                fields[name] = flat[name][begin : taken[name]].reshape(shape).copy()
        kind = Rollout if OPTIONAL.isdisjoint(fields) else DetailedRollout
        rollouts.append(kind(problem_id=problem_id, sample=sample, finish_reason=finish_reason, **fields))
    return rollouts


def groups_to_json(groups: Sequence[Group]) -> list[list[Any]]:
    """Of each group [problem, rewards, correct], json-able; its rollouts go beside that, as above."""
    return [[asdict(group.problem), group.rewards.tolist(), group.correct.tolist()] for group in groups]


def groups_from_json(heads: Iterable[Sequence[Any]], rollouts: Iterable[Rollout]) -> list[Group]:
    """The groups of `groups_to_json`, from their rollouts one group behind the other."""
    rest, groups = iter(rollouts), []
    for problem, rewards, correct in heads:
        mine = tuple(islice(rest, len(rewards)))
        judged = np.asarray(rewards, np.float32), np.asarray(correct, bool)
        groups.append(Group(problem_from_json(problem), mine, *judged))
    return groups


def to_bytes(rollouts: Sequence[Rollout], dtypes: Mapping[str, type] = DTYPES) -> bytes:
    """The arrays as an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **rollouts_to_arrays(rollouts, dtypes))
    return buffer.getvalue()


def from_bytes(data: bytes, dtypes: Mapping[str, type] = DTYPES) -> list[Rollout]:
    """The rollouts of `to_bytes` with the same dtypes, to the bit."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return rollouts_from_arrays(dict(file), dtypes)


def rollouts_of_others(mine: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts of the other processes. Every process calls it once, with its own."""
    everyone = gather_bytes(to_bytes(mine))
    others = everyone[: jax.process_index()] + everyone[jax.process_index() + 1 :]
    return [rollout for data in others for rollout in from_bytes(data)]
