"""Which texts of the user's reward files a run has had: what it computes depends on them as on its config.

WORKDIR/reward_files.json   [{"step": the step behind which a start resumed, "sha256": {file name: of its text}}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from polaris_jax.config import within
from polaris_jax.errors import UserError
from polaris_jax.files import write_json
from polaris_jax.rewards.functions import RewardFunction
from polaris_jax.sharding import multihost


def check_reward_files(functions: Sequence[RewardFunction], workdir: Path, allowed: Iterable[str]) -> None:
    """Compares the files with those of the run's newest start. allowed: keys of the config that may change.

    Raises UserError where a file has another text and `reward.functions` may not change; else says so in the log.
    """
    history, now = _history(workdir), _hashes(functions)
    before = history[-1]["sha256"] if history else {}
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed and not within("reward.functions", allowed):
        raise UserError(
            f"{workdir}: {', '.join(changed)} has changed since the run began; put it back, give another directory, or "
            "resume with --allow_changed=reward.functions"
        )
    for name in changed:
        logging.warning("%s resumes with %s changed: %s -> %s", workdir, name, before[name][:12], now[name][:12])


def note_reward_files(functions: Sequence[RewardFunction], workdir: Path, step: int) -> None:
    """Adds the files that a start behind `step` uses, where they are not those of the start before."""
    history, now = _history(workdir), _hashes(functions)
    multihost.barrier(f"all have read {workdir}/reward_files.json")
    if multihost.is_writer() and now != (history[-1]["sha256"] if history else {}):
        write_json(workdir / "reward_files.json", [*history, {"step": step, "sha256": now}])


def _hashes(functions: Sequence[RewardFunction]) -> dict[str, str]:
    return {Path(function.file).name: function.sha256 for function in functions if function.file}


def _history(workdir: Path) -> list[dict]:
    path = workdir / "reward_files.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
