"""Compiled programs are kept on disk, so that a second job or a restart does not compile them again."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax
from absl import logging

MOST_BYTES = 4 << 30  # the programs that were not used for longest make room
LEAST_SECONDS = 0.2  # what compiles faster is not kept


def enable_compilation_cache(directory: str | Path) -> None:
    """Keeps compiled programs in `directory`, at most `MOST_BYTES` of them; where it cannot be written, says so.

    Where JAX was given a directory before, as by JAX_COMPILATION_CACHE_DIR, that one is used, with JAX's own settings.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    directory = Path(directory).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for program in directory.glob("*-cache"):
            # A process that was killed between two writes left it without its time of use, at which JAX would stop.
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("%s: compiled programs cannot be kept: %s", directory, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


def users_directory() -> str:
    """Where the user's caches are: a directory for each kind of processor, since unlike machines share homes."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "polaris_jax", "compiled", _kind_of_processor())


def _kind_of_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}"
