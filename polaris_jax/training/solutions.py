"""The rescue's solutions in checkpoints: a save writes what is new since the one before, and links that one's files.

STEP/solutions/STEP.npz     solutions that were new at this step (`rollout/codec.py`, compact)
STEP/solutions/BEFORE.npz   those of a step before that are still kept: another name (a hard link) of the file in the
                            checkpoint before, so that the disk holds it once

So each checkpoint is whole by itself, whichever others are removed or copied. A file of which less than half is still
kept is left behind, and that half is written anew: all files take at most twice the bytes of what is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from polaris_jax.files import CHECKSUMS
from polaris_jax.rl.exploration import rollout_bytes
from polaris_jax.rollout.codec import COMPACT, from_bytes, to_bytes
from polaris_jax.types import Rollout

DIRECTORY = "solutions"

Index = Sequence[tuple[str, Sequence[str]]]  # in the solutions' order: names of files, and problem ids in each


class File(NamedTuple):
    """A file of solutions. size: bytes of all in it. kept: those that are still kept, by problem id."""

    size: int
    kept: Mapping[str, Rollout]


class Plan(NamedTuple):
    """What a save writes. files: what all its files hold. new: the name of the one that is new, if there is one."""

    index: Index
    files: Mapping[str, File]
    new: str | None


def plan(solutions: Mapping[str, Rollout], before: Mapping[str, File], name: str) -> Plan:
    """How a checkpoint keeps these solutions. before: files of the checkpoint before. name: of the file to be written.

    A solution is taken for unchanged where it is the same object.
    """
    files, where = {}, {}
    for other, file in before.items():
        kept = {key: rollout for key, rollout in file.kept.items() if solutions.get(key) is rollout}
        if kept and 2 * sum(map(rollout_bytes, kept.values())) >= file.size:
            files[other] = File(file.size, kept)
            where |= dict.fromkeys(kept, other)
    new = {key: rollout for key, rollout in solutions.items() if key not in where}
    if new:
        files[name] = File(sum(map(rollout_bytes, new.values())), new)
    index = [(file, list(keys)) for file, keys in groupby(solutions, lambda key: where.get(key, name))]
    return Plan(index, files, name if new else None)


def write(planned: Plan, before: Path | None, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Writes the files of a plan into a checkpoint. before: the directory of the checkpoint before.

    Returns the checksums of the linked files, as that checkpoint's `files.write_checksums` found them. Raises OSError.
    """
    if not planned.files:
        return {}
    (checkpoint / DIRECTORY).mkdir()
    linked = [f"{DIRECTORY}/{name}" for name in planned.files if name != planned.new]
    for name in linked:
        _link(before / name, checkpoint / name)
    if planned.new:
        rollouts = list(planned.files[planned.new].kept.values())
        (checkpoint / DIRECTORY / planned.new).write_bytes(to_bytes(rollouts, COMPACT))
    known = json.loads((before / CHECKSUMS).read_text(encoding="utf-8")) if linked else {}
    return {name: known[name] for name in linked}


def read(checkpoint: Path, index: Index) -> tuple[dict[str, Rollout], dict[str, File]]:
    """The solutions of a checkpoint in their order, and its files; without those of files that are not there."""
    found, files = {}, {}
    for name in dict.fromkeys(name for name, _ in index):
        path = checkpoint / DIRECTORY / name
        if path.exists():
            rollouts = {rollout.problem_id: rollout for rollout in from_bytes(path.read_bytes(), COMPACT)}
            kept = {key: rollouts[key] for other, keys in index if other == name for key in keys}
            files[name] = File(sum(map(rollout_bytes, rollouts.values())), kept)
            found |= kept
    return {key: found[key] for _, keys in index for key in keys if key in found}, files


def _link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
