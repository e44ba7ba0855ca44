"""Verdicts on disk, so that a restart judges no response again: one near the time limit might get another verdict."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from polaris_jax.files import JsonLines, read_steps
from polaris_jax.rewards.verdict import Reason, Verdict


class KeptVerdicts:
    """A file of verdicts, each under a hash of the response and the ground truths, written as it comes.

    path: None keeps nothing. What follows a broken line of the file is judged again, and so is a response to a problem
    whose ground truths have changed. A context manager, which closes the file.
    """

    def __init__(self, path: Path | None):
        self._path, self._verdicts, self._lines = path, {}, None
        if path is None:
            return
        rows, size = read_steps(path)
        self._verdicts = {row["key"]: Verdict(row["correct"], Reason(row["reason"])) for row in rows}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(path, size)
        except OSError as error:
            self._tell(error)

    def find(self, response: str, answers: Sequence[str]) -> Verdict | None:
        """The verdict that was kept, or None where there is none."""
        return self._verdicts.get(_key(response, answers)) if self._verdicts else None

    def keep(self, response: str, answers: Sequence[str], verdict: Verdict) -> None:
        """Appends a verdict where none is kept; says so on stderr where there is no room."""
        if self._lines is None or (key := _key(response, answers)) in self._verdicts:
            return
        self._verdicts[key] = verdict
        self._lines.add({"key": key, "correct": verdict.correct, "reason": verdict.reason})
        try:
            self._lines.flush()
        except OSError as error:
            self._tell(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._lines.close()

    def _tell(self, error: OSError) -> None:
        print(f"{self._path}: verdicts not kept: {error.strerror}", file=sys.stderr)


def _key(response: str, answers: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([response, *answers]).encode()).hexdigest()
