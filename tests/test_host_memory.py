"""Freed memory of the process goes back to the kernel, but for what is kept."""

import ctypes
from pathlib import Path

import pytest

from polaris_jax.host_memory import release_freed_memory

MIB = 2**20
LIBC = ctypes.CDLL(None)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MIB


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs glibc")
def test_freed_memory_below_living_blocks_is_given_back():
    LIBC.malloc.restype, LIBC.malloc.argtypes, LIBC.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    before, blocks = resident(), []
    for _ in range(64):  # every other one lives on, so that the heap cannot shrink from its end
        block = LIBC.malloc(4 * MIB)
        ctypes.memset(block, 1, 4 * MIB)
        blocks.append(block)
    for block in blocks[::2]:
        LIBC.free(block)
    release_freed_memory(1024 * MIB)  # less is left to the process
    assert resident() - before > 200
    release_freed_memory(64 * MIB)
    assert resident() - before < 160
    for block in blocks[1::2]:
        LIBC.free(block)
