"""How the process uses the host's memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_* of glibc's malloc.h
_FREE = 8  # the place of `fordblks`, the bytes of free blocks, in mallinfo2's struct
MOST_KEPT = 2**30  # bytes of freed memory that `release_freed_memory` leaves to the process


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for this process (mallopt(3)); without glibc it does nothing.

    XLA's CPU backend allocates the temporaries of each call anew. By default glibc returns blocks of such sizes to the
    kernel at once, which zeroes them again, page by page, at the next call: a fifth of the time of an update.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(_ARENA_MAX, 1)  # threads' own arenas would still map large blocks
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory(most_kept: int = MOST_KEPT) -> None:
    """Gives freed memory back to the kernel where it is more than `most_kept` bytes (malloc_trim(3)).

    To be called between phases whose arrays have other sizes. Freed blocks that lie between living ones are not reused
    by larger ones, so that a large model's process otherwise grows by gigabytes that nobody uses.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallinfo2"):
        return
    libc.mallinfo2.restype = _Mallinfo
    if libc.mallinfo2().counts[_FREE] > most_kept:
        libc.malloc_trim(0)


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; see mallinfo(3)."""

    _fields_ = [("counts", ctypes.c_size_t * 10)]
