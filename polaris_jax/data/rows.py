"""Rows of jsonl, json and parquet files, directories of them, and hub datasets, each with the place it stands at."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
from pyarrow import parquet

from polaris_jax.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet")
_BLANK = b" \t\r\n" + codecs.BOM_UTF8  # what may stand before a JSON text, none of whose bytes can begin one

Rows = Iterable[tuple[str, Any]]  # (place, row): a dict of columns, or the RowError that stands in its stead


class RowError(ValueError):
    """Why one row cannot be used, in words; the row's place is added where it is listed."""


def collect(
    source: str | Path, parse: Callable[[dict[str, Any]], Any], *, skipped: list[str] | None = None
) -> list[tuple[str, Any]]:
    """`(place, parse(row))` for each usable row of a file, directory or hub dataset, in order.

    parse: raises RowError for a row that cannot be used. Such rows are left out, logged, and listed in `skipped` as
    `train.jsonl line 17: answer is empty`; lines and rows count from 1.
    Raises UserError for a source that is missing or unreadable, and for a file without a usable row.
    """
    usable, faults = [], []
    for name, rows in open_tables(source):
        before, bad = len(usable), len(faults)
        for place, row in rows:
            try:
                if isinstance(row, RowError):
                    raise row
                usable.append((place, parse(row)))
            except RowError as error:
                faults.append(f"{place}: {error}".encode(errors="backslashreplace").decode())
        if len(usable) == before:
            reason = f"none of its {len(faults) - bad} rows is usable; {faults[bad]}" if faults[bad:] else "has no rows"
            raise UserError(f"{name}: {reason}")
    if faults:
        logging.warning("%d rows of %s skipped: %s", len(faults), source, summary(faults))
    if skipped is not None:
        skipped.extend(faults)
    return usable


def checked_text(value: Any, name: str) -> str:
    """The value, where it is a text that can be written as UTF-8. Raises RowError, calling it `name`, where not."""
    if not isinstance(value, str):
        raise RowError(f"{name} is a {type(value).__name__}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} holds half a character at position {error.start}") from error
    return value


def summary(lines: list[str], shown: int = 3) -> str:
    """The first few lines in one, and how many more there are."""
    more = f"; and {len(lines) - shown} more" if len(lines) > shown else ""
    return "; ".join(lines[:shown]) + more


def open_tables(source: str | Path) -> list[tuple[str, Rows]]:
    """The files of a source with their rows: `[(name, rows)]`.

    source: a .jsonl, .json or .parquet file; a directory, of which all such files are read in the order of their paths
    (or one that `datasets.save_to_disk` wrote); or a hub dataset, `owner/name`, `owner/name:split` (default "train") or
    `owner/name:configuration:split`. Raises UserError when it is none of these.
    """
    path = Path(source)
    if os.path.isdir(path):  # unlike Path.is_dir, False for what no file can be called
        if (path / "state.json").exists() and (path / "dataset_info.json").exists():
            return [(str(path), _dataset_rows(path.name, _load_saved(path)))]
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not files:
            raise UserError(f"{path}: the directory holds no file that ends in {', '.join(SUFFIXES)}")
        return [(str(file), _file_rows(file)) for file in files]
    if os.path.isfile(path):
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: unknown kind of file {path.suffix!r}; expected {', '.join(SUFFIXES)}")
        return [(str(path), _file_rows(path))]
    name, *parts = str(source).split(":")
    split, configuration = (parts or ["train"])[-1] or "train", parts[:-1]
    if len(parts) > 2 or name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).suffix in SUFFIXES:
        raise UserError(f"{source}: no such file or directory")
    return [(str(source), _dataset_rows(name, _load_hub(name, configuration, split)))]


def _load_saved(path: Path) -> datasets.Dataset:
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, as below
        raise UserError(f"{path}: not a dataset that save_to_disk wrote ({error})") from error


def _load_hub(name: str, configuration: list[str], split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, *configuration, split=split)
    except Exception as error:  # the hub's client raises many kinds: offline, not found, gated, no such split
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: neither a file here nor a hub dataset with split {split!r} ({reason}); "
            f"a local {', '.join(SUFFIXES)} file or a directory of them may be given instead"
        ) from error


def _dataset_rows(name: str, dataset: datasets.Dataset) -> Rows:
    return ((f"{name} row {number}", row) for number, row in enumerate(dataset, start=1))


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    # Not through `datasets`, which refuses a whole file for one bad line and first copies it into its cache.
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return _json_rows(path)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with _as_utf8(path) as file:
            first = next((line for line in _lines(file) if line), b"")
            file.seek(0)
            if path.suffix == ".json" and first.startswith(b"["):
                for number, row in enumerate(_parse_json(file.read().lstrip(_BLANK)), start=1):
                    yield f"{path.name} row {number}", _mapping(row)
                return
            for number, line in enumerate(_lines(file), start=1):
                if line:
                    yield f"{path.name} line {number}", _json_row(line)
    except RowError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _as_utf8(path: Path) -> IO[bytes]:
    file = path.open("rb")
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        with file:
            file.seek(0)
            return io.BytesIO(file.read().decode("utf-16", errors="replace").encode())
    file.seek(0)
    return file


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    return (line.strip(_BLANK) for line in file)


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from error


def _json_row(line: bytes) -> Any:
    try:
        return _mapping(_parse_json(line))
    except RowError as error:
        return error


def _mapping(row: Any) -> Any:
    return row if isinstance(row, dict) else RowError(f"found a {type(row).__name__}, expected an object of columns")
