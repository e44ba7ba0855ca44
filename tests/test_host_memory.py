"""Memory that large arrays had is the machine's again when they are gone, whatever was allocated after them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
import numpy as np
import polaris_jax  # sets how memory is kept

def in_use():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30

before, large, after_it = in_use(), [], []
for _ in range(8):
    large.append(np.ones(2**26, np.uint8))
    after_it.append(np.ones(2**16, np.uint8))
held = in_use() - before
large.clear()
print(held, in_use() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_large_arrays_leave_no_holes():
    """In a process of its own, in which nothing else comes and goes; GiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 0.49
    assert left < 0.05
