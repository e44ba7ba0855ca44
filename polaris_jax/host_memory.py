"""How the process uses the host's memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_* of glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 2**25  # bytes


def keep_freed_memory() -> None:
    """Has glibc keep freed blocks of up to 32 MiB for this process (mallopt(3)); without glibc it does nothing.

    XLA's CPU backend allocates the temporaries of each call anew. By default glibc returns blocks of such sizes to the
    kernel at once, which zeroes them again, page by page, at the next call: a fifth of the time of a small model's
    update. Larger blocks still go back: kept, those of a 0.5B model left holes that took as much as the model's state.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(_ARENA_MAX, 1)  # threads' own arenas would still map large blocks
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
