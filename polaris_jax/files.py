"""Files that a kill or a full disk cannot spoil: whole or not there, append-only with a known end, or with checksums.

A file that is replaced (a config, scores, a picture) is written beside its place and renamed; a file that grows
(metrics, journals) is JSON lines, whose unfinished last line is dropped; a directory of large files (a checkpoint)
keeps the checksums of what it holds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from io import FileIO
from pathlib import Path
from typing import Any, Self

import jax

from polaris_jax.errors import UserError
from polaris_jax.sharding import multihost

CHECKSUMS = "checksums.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# Whole or not there.


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`, with the same suffix, to write a file to.

    The file takes its name when the block ends well, in place of one that was there; if not, it is removed.
    """
    path = Path(path)
    staging = path.with_name(f".{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a text (as UTF-8) or bytes, so that the file is there whole or not at all."""
    with staged(path) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a json-able value, so that the file is there whole or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def check_target(target: str | Path, *, overwrite: bool = False) -> Path:
    """The absolute path of a directory to be written. Raises UserError where something is there already."""
    target = Path(target).expanduser().absolute()
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; remove it or name another target")
    return target


@contextmanager
def new_directory(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `target` that takes its name when the block ends well, and is removed if not.

    Raises UserError where `target` already holds something and `overwrite` is false, or cannot be made or written.
    """
    target = check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be made: {error.strerror}") from error
    staging.chmod(0o755)
    try:
        yield staging
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.rename(target, old)
            os.rename(staging, target)
            shutil.rmtree(old)
        else:
            os.rename(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"{target}: cannot be written: {error.strerror}; nothing is left of it") from error
        raise


# Checksums: how damage on the disk is found before anything is read from a directory.


def write_checksums(directory: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> int:
    """Writes DIRECTORY/checksums.json over all files below its subdirectories, and returns the bytes of those hashed.

    known: entries of files that need not be hashed again. Files beside it in `directory` itself are left out: Orbax
    still changes its own there when it commits a checkpoint.
    """
    rows = dict(known or {})
    names = [str(path.relative_to(directory)) for path in sorted(directory.glob("*/**/*")) if path.is_file()]
    names = [name for name in names if name not in rows]
    sizes = [(directory / name).stat().st_size for name in names]
    digests = _digests(directory / name for name in names)
    rows |= {name: {"bytes": size, "sha256": digest} for name, size, digest in zip(names, sizes, digests, strict=True)}
    write_json(directory / CHECKSUMS, rows)
    return sum(sizes)


def damage(directory: Path) -> dict[str, str]:
    """What is wrong, in words, with each file that is not as `write_checksums` found it, by its name."""
    try:
        rows = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        expected = {name: (int(row["bytes"]), row["sha256"]) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {CHECKSUMS: f"{CHECKSUMS} is missing or broken"}
    found = {}
    for name, (size, _) in expected.items():
        path = directory / name
        if not path.is_file():
            found[name] = f"{name} is missing"
        elif path.stat().st_size != size:
            found[name] = f"{name} has {path.stat().st_size} bytes, expected {size}"
    rest = [name for name in expected if name not in found]
    for name, digest in zip(rest, _digests(directory / name for name in rest), strict=True):
        if digest != expected[name][1]:
            found[name] = f"{name} has another checksum than when it was written"
    return found


def _digests(paths: Iterable[Path]) -> list[str | None]:
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # a disk that cannot read it back
        return None


# JSON lines.


class JsonLines:
    """A file of JSON lines that grows; each line is handed to the operating system at once.

    path: None in a process that does not write. size: bytes of the file that stay; what is behind them, such as a line
    that a kill left unfinished, is cut off by one truncation. What cannot be written, as on a full disk, stays in
    memory and goes before what follows.
    """

    def __init__(self, path: Path | None, size: int):
        self._file = FileIO(path or os.devnull, "a")
        if path:
            self._file.truncate(size)
        self._on_disk, self._pending = path is not None, b""

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row, which `flush` writes."""
        self._pending += json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

    def flush(self) -> None:
        """Writes what is not yet written. Raises OSError where that cannot be."""
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def sync(self) -> None:
        """Returns when all is on the disk. Raises OSError where that cannot be."""
        self.flush()
        if self._on_disk:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_steps(path: Path, last_step: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The rows up to `last_step`, if given, by their key `step`, and the bytes that they take in the file.

    What follows a broken line, or the unfinished last one, is left out. A missing file has no rows.
    """
    rows, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or (last_step is not None and row["step"] > last_step):
            break
        rows.append(row)
        size += len(line)
    return rows, size


def open_steps(path: Path, last_step: int) -> tuple[list[dict[str, Any]], JsonLines]:
    """The rows up to `last_step`, and the file, cut off behind them. Every process calls it, and one writes."""
    rows, size = read_steps(path, last_step)
    multihost.barrier(f"all have read {path}")
    return rows, JsonLines(path if multihost.is_writer() else None, size)


class Journal:
    """Records of a dataclass as JSON lines, written as they come, so that a killed job loses only a few.

    settings: what the records depend on (model, sampling, seed, ...), kept in the first line. kind: the dataclass.
    `records` holds what was there before; nothing is written before the first new record. Of several processes each
    writes a file of its own, such as responses.1.jsonl, and reads those of all, however many there were. Raises
    UserError where a file belongs to other settings or has a broken line; a last line that was not finished is dropped.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], kind: type):
        path, self._lines, self._size = Path(path), None, 0
        self._path = path if multihost.is_writer() else path.with_suffix(f".{jax.process_index()}{path.suffix}")
        self._settings = json.loads(json.dumps(dict(settings)))
        self.records: list[Any] = []
        for part in [path, *sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))]:
            whole, end, _ = (part.read_bytes() if part.exists() else b"").rpartition(b"\n")
            if part == self._path:
                self._size = len(whole + end)
            lines = whole.splitlines()
            if lines:
                _check_settings(part, _parse_line(part, 1, lines[0]), self._settings)
            self.records += [_record(part, number, line, kind) for number, line in enumerate(lines[1:], start=2)]
        multihost.barrier(f"all have read {path}")

    def write(self, record: Any) -> None:
        """Appends a record and hands it to the operating system. Raises OSError where that cannot be."""
        if self._lines is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(self._path, self._size)
            if not self._size:
                self._lines.add(self._settings)
        self._lines.add(asdict(record))
        self._lines.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._lines:
            self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} line {number}: not JSON ({error}); remove the file to start again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} line {number}: found a {type(value).__name__}; remove the file to start again")
    return value


def _record(path: Path, number: int, line: bytes, kind: type) -> Any:
    value = _parse_line(path, number, line)
    if value.keys() != {field.name for field in fields(kind)}:
        raise UserError(f"{path} line {number}: not a record of this job; remove the file to start again")
    return kind(**value)


def _check_settings(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*expected, *found]):
        if found.get(key) != expected.get(key):
            raise UserError(
                f"{path}: holds an evaluation with {key} {found.get(key)!r}, this one has {expected.get(key)!r}; "
                "give another output directory"
            )
