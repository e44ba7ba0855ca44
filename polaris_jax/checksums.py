"""Checksums of a directory's files, kept in it: how damage on the disk is found before anything is read from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "checksums.json"


def write(directory: Path) -> int:
    """Writes DIRECTORY/checksums.json over all files below its subdirectories, and returns their bytes together.

    Files beside it in `directory` itself are left out: Orbax still changes its own there when it commits a checkpoint.
    """
    names = [str(path.relative_to(directory)) for path in sorted(directory.glob("*/**/*")) if path.is_file()]
    sizes = [(directory / name).stat().st_size for name in names]
    rows = {
        name: {"bytes": size, "sha256": digest}
        for name, size, digest in zip(names, sizes, _digests(directory / name for name in names), strict=True)
    }
    (directory / NAME).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return sum(sizes)


def damage(directory: Path) -> str | None:
    """What is wrong with the first file that is not as `write` found it, or None where all are."""
    try:
        rows = json.loads((directory / NAME).read_text(encoding="utf-8"))
        expected = {directory / name: (int(row["bytes"]), row["sha256"]) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{NAME} is missing or broken"
    for path, (size, _) in expected.items():
        name = path.relative_to(directory)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    for (path, (_, wanted)), found in zip(expected.items(), _digests(expected), strict=True):
        if found != wanted:
            return f"{path.relative_to(directory)} has another checksum than when it was written"
    return None


def _digests(paths: Iterable[Path]) -> list[str | None]:
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a disk that cannot read it back
        return None
