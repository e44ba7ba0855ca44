"""Freed memory of the process goes back to the kernel, but for what is kept."""

import ctypes
import subprocess
import sys

import pytest

# In a process of its own, in which nothing else allocates.
PROGRAM = """
import ctypes
from pathlib import Path

from polaris_jax.host_memory import keep_freed_memory, release_freed_memory

MIB = 2**20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MIB


keep_freed_memory()
before, blocks = resident(), []
for _ in range(64):  # every other one lives on, so that the heap cannot shrink from its end
    blocks.append(libc.malloc(4 * MIB))
    ctypes.memset(blocks[-1], 1, 4 * MIB)
for block in blocks[::2]:
    libc.free(block)
release_freed_memory(1024 * MIB)  # less is left to the process
print(resident() - before)
release_freed_memory(64 * MIB)
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
def test_freed_memory_below_living_blocks_is_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, given_back = map(float, done.stdout.split())
    assert kept > 200
    assert given_back < 160
