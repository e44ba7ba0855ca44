"""Memory that large arrays had is the machine's again when they are gone, whatever was allocated after them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import polaris_jax  # noqa: F401 (sets how memory is kept)

GIB = 2**30


def in_use() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_arrays_leave_no_holes():
    before = in_use()
    large, after_it = [], []
    for _ in range(8):
        large.append(np.ones(GIB // 16, np.uint8))
        after_it.append(np.ones(2**16, np.uint8))
    assert in_use() - before > 0.45 * GIB
    large.clear()
    assert in_use() - before < 0.1 * GIB
