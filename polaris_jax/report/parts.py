"""Parts of the report's json: numbers, per-token values in few bytes, and texts that fit a budget."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps

from polaris_jax.rewards.answers import THINK_END

NATS = 1024  # the units of a nat in which per-token values are kept
UNKNOWN = -(2**15)  # for a value that is not finite


def as_json(value: Any) -> str:
    """JSON as markup that is safe within HTML, in ASCII, with `<`, `>`, `&` and `'` escaped.

    Numbers that are not finite become null.
    """
    return htmlsafe_json_dumps(finite(value), separators=(",", ":"))


def finite(value: Any) -> Any:
    """The json-able value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def packed(values: np.ndarray) -> str:
    """float [n], nats, as base64 of little-endian int16 in 1/`NATS`; those beyond +-31.9 are put there."""
    values = np.asarray(values, np.float32)
    units = np.clip(np.nan_to_num(values * NATS, nan=0), UNKNOWN + 1, 2**15 - 1).round()
    return base64.b64encode(np.where(np.isfinite(values), units, UNKNOWN).astype("<i2").tobytes()).decode()


def cut(pieces: Sequence[str], most: int, **values: np.ndarray) -> dict[str, Any]:
    """A text in pieces, with values of each: the first and the last pieces, `most` of them together.

    cut: how many of the kept pieces are before the gap; left_out: pieces in the gap, 0 where all are kept.
    """
    left_out = max(0, len(pieces) - most)
    before = most // 2 if left_out else len(pieces)
    after = before + left_out
    kept = {name: packed(np.concatenate([array[:before], array[after:]])) for name, array in values.items()}
    return {"pieces": [*pieces[:before], *pieces[after:]], "cut": before, "left_out": left_out, **kept}


def short(text: str, most: int = 1000) -> str:
    """The text, or its beginning and how much longer it is."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} characters more)"


def thoughts_end(pieces: Sequence[str]) -> int:
    """How many pieces there are up to the one that ends with the last </think>, it included; 0 where there is none."""
    end = "".join(pieces).rfind(THINK_END)
    if end < 0:
        return 0
    ends = np.cumsum([len(piece) for piece in pieces])
    return int(np.searchsorted(ends, end + len(THINK_END))) + 1


def spread(count: int) -> list[int]:
    """0 to count - 1 in an order whose every beginning is spread evenly over them, the last one first."""
    order = sorted(range(count), key=lambda i: f"{i:032b}"[::-1])
    return [count - 1 - i for i in order]


def in_turn(rows: Iterable[Sequence[Any]]) -> list[Any]:
    """The first of each row, then the second of each, and so on."""
    missing = object()
    return [item for each in zip_longest(*rows, fillvalue=missing) for item in each if item is not missing]


def fitting(
    items: Sequence[Any], encode: Callable[[Any, int], Iterable[Any]], budget: int, caps: Sequence[int], enough: int
) -> list[Any]:
    """What `encode(item, cap)` gives for as many of the items as take at most `budget` bytes of json together.

    With the first of `caps` with which all fit or at least `enough` do, or with the last; a cap bounds the pieces of a
    text. Items are taken in their order; one that does not fit is left out and ends it.
    """
    kept: list[Any] = []
    for cap in caps:
        kept, size, whole = [], 0, True
        for item in items:
            for row in encode(item, cap):
                size += len(as_json(row)) + 1
                whole = size <= budget
                if not whole:
                    break
                kept.append(row)
            if not whole:
                break
        if whole or len(kept) >= enough:
            break
    return kept
