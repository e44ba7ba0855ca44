"""A run's directory: held by one run at a time, with the config that it was made with.

WORKDIR/lock         locked while a run writes here; says which
WORKDIR/config.json  the config of the newest start
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from configs import base
from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.files import write_json
from polaris_jax.sharding import multihost

# Keys that may change between two starts of a run: what it computes does not depend on them.
FREE = (
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep",
    "training.keep_every",
    "training.keep_best",
    "training.log_samples",
    "training.loggers",
    "training.profile_steps",
    "training.grace_s",
    "training.watchdog_minutes",
    "sft.checkpoint_every",
    "reward.workers",
)
SHAPES = ("model.lora_rank", "model.lora_targets")  # of what checkpoints hold: never others in the same directory
GROWING = ("training.steps", "sft.steps", "stages")  # may say more at a later start: the run is then resumed


@contextmanager
def hold(workdir: str | Path) -> Iterator[Path]:
    """The directory, made if missing, which no other run can hold meanwhile. One left empty is removed at the end.

    The lock is the operating system's: it ends with the process, however that ends, so there are no stale ones. Of
    several processes of a run the first holds it. Raises UserError where another run holds the directory or it cannot
    be written.
    """
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock").open("a+b", buffering=0) if multihost.is_writer() else None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    if file is None:
        yield path
        return
    with file:
        _lock(file, path)
        try:
            yield path
        finally:
            if [child.name for child in path.iterdir()] == ["lock"]:
                (path / "lock").unlink()
                path.rmdir()


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%F %T}".encode())
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().decode(errors="replace") or "which has just begun"
        raise UserError(
            f"{path}: held by another run, {holder}; wait for its end, stop it, or give another directory"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be locked: {error.strerror}; give a directory on another disk") from error


def check_config(
    config: ConfigDict,
    workdir: Path,
    *,
    allowed: Iterable[str] = (),
    free: Iterable[str] = FREE,
    growing: Iterable[str] = GROWING,
) -> None:
    """Compares with the config.json that is there, if any, and tells what differs, `old -> new`.

    allowed, free: keys that may differ, or whole sections such as "optimizer"; those in `free` do not change what the
    run computes. growing: those of `GROWING` that may say more than before: more steps, or further stages. Raises
    UserError where another key differs, and names all of those.
    """
    known, path, new = dict(configs.flatten(base.get_config())), workdir / "config.json", _plain(config)
    for key in allowed:
        if not any(configs.within(name, [key]) for name in known):
            raise UserError(f"--allow_changed={key}: no such key{configs.nearest(key, known)}")
    old = _read(path) if path.exists() else new
    changed = {key: f"config.{key}: {old.get(key)!r} -> {new[key]!r}" for key in new if old.get(key) != new[key]}
    if shapes := [key for key in SHAPES if key in changed]:
        raise UserError(
            f"{workdir}: the checkpoints here have other adapters: {'; '.join(changed[key] for key in shapes)}; give "
            f"another directory. With config.model.path={workdir} a new run begins from what this one has learnt"
        )
    refused = [key for key in changed if not configs.within(key, (*allowed, *free))]
    refused = [key for key in refused if not (key in growing and _extends(key, old.get(key), new[key]))]
    if refused:
        raise UserError(
            f"{workdir}: the run here has another config: {'; '.join(changed[key] for key in refused)}; give another "
            f"directory, or resume with --allow_changed={','.join(refused)}"
        )
    for text in changed.values():
        logging.warning("%s resumes with %s", workdir, text)


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json."""
    multihost.barrier(f"all have read {workdir}/config.json")
    if multihost.is_writer():
        write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))


def _read(path: Path) -> dict[str, Any]:
    """The keys of a config.json, with the defaults of those that are newer than it."""
    try:
        return _plain(base.get_config()) | dict(configs.flatten(ConfigDict(json.loads(path.read_text("utf-8")))))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a config: {error}; put it back, or give another directory") from error


def _plain(config: ConfigDict) -> dict[str, Any]:
    return dict(configs.flatten(ConfigDict(json.loads(config.to_json_best_effort()))))


def _extends(key: str, old: Any, new: Any) -> bool:
    """Whether a run with the new value first does what one with the old did, and then more."""
    if key != "stages":
        return new > old
    if not old or len(new) < len(old):
        return False
    (*before, last), again = (dict(stage) for stage in old), dict(new[len(old) - 1])
    longer = last.pop("steps", 0) <= again.pop("steps", 0)
    return [dict(stage) for stage in new[: len(old) - 1]] == before and again == last and longer
