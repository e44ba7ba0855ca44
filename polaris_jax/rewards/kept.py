"""Verdicts on disk, so that a restart judges no response again: one near the time limit might get another verdict."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from polaris_jax.files import JsonLines, read_steps
from polaris_jax.rewards.verdict import Verdict, from_json


class KeptVerdicts:
    """A file of verdicts, each under a hash of the response and of what it was judged by, written as it comes.

    judged_by: the ground truths, and all else that a verdict and its scores depend on.

    path: None keeps nothing. What follows a broken line of the file is judged again, and so is a response to a problem
    whose ground truths have changed. A context manager, which closes the file.
    """

    def __init__(self, path: Path | None):
        self._path, self._verdicts, self._lines = path, {}, None
        if path is None:
            return
        rows, size = read_steps(path)
        self._verdicts = {row["key"]: from_json(row) for row in rows}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(path, size)
        except OSError as error:
            self._tell(error)

    def find(self, response: str, judged_by: Sequence[str]) -> Verdict | None:
        """The verdict that was kept, or None where there is none."""
        return self._verdicts.get(_key(response, judged_by)) if self._verdicts else None

    def keep(self, response: str, judged_by: Sequence[str], verdict: Verdict) -> None:
        """Appends a verdict where none is kept; says so on stderr where there is no room."""
        if self._lines is None or (key := _key(response, judged_by)) in self._verdicts:
            return
        self._verdicts[key] = verdict
        self._lines.add({"key": key, **asdict(verdict)})
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


def _key(response: str, judged_by: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([response, *judged_by]).encode()).hexdigest()
