"""How every script starts: flags are parsed, a user's mistake becomes one line on stderr and exit code 2.

Whatever takes long to import, such as JAX, a script imports in its `main`: `--help` and a mistake in the flags then do
not wait for it.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import is_config_flag

from configs import base
from polaris_jax.errors import NOT_FINITE, USER_ERROR, NonFiniteUpdates, UserError

COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0, where not found.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Their number, where not found; 1: this one is alone.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0, where not found.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Where compiled programs are kept (default: in the user's cache directory); '': nowhere."
)
HEARTBEAT = flags.DEFINE_integer("heartbeat_timeout_s", 100, "Silence after which a process counts as lost.")

# A full or read-only disk, where the job cannot go on without writing; nothing of the program is at fault.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Parses flags (`argv`, default `sys.argv`), calls `main([program])` and exits with what it returns (None: 0).

    A `UserError` from `main`, a bad flag, a stray argument or a disk that cannot be written prints `error: ...` in one
    line on stderr and exits with code 2, `NonFiniteUpdates` likewise with 3 (all codes: errors.py). Any other exception
    keeps its traceback. `--help` prints the script's docstring and flags and exits with 0. Where the script is started
    in several processes they find each other before `main` (`multihost.start`).
    """

    def join_and_run(rest: list[str]) -> int | None:
        from polaris_jax.sharding import multihost

        _keep_programs(COMPILATION_CACHE.value)
        multihost.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, HEARTBEAT.value)
        return main(rest)

    def leave(error: Exception, code: int) -> None:
        if flags.FLAGS.is_parsed():  # else the processes have not found each other yet
            from polaris_jax.sharding import multihost

            multihost.leave(error, code, heartbeat_timeout_s=HEARTBEAT.value)

    try:
        app.run(join_and_run, argv=None if argv is None else list(argv), flags_parser=_parse_flags)
    except Exception as error:
        told = isinstance(error, UserError | NonFiniteUpdates)
        if not told and not (isinstance(error, OSError) and error.errno in _DISK_ERRORS):
            leave(error, 1)
            raise
        print("error:", _one_line(str(error)), file=sys.stderr)
        code = NOT_FINITE if isinstance(error, NonFiniteUpdates) else USER_ERROR
        leave(error, code)
        sys.exit(code)
    sys.exit(0)


def _keep_programs(directory: str | None) -> None:
    import jax

    from polaris_jax.runs.compilation import enable_compilation_cache, users_directory

    if directory is not None:  # what the command line says goes before the environment
        jax.config.update("jax_compilation_cache_dir", None)
    if directory != "":
        enable_compilation_cache(directory or users_directory())


def _one_line(text: str) -> str:
    """The text in one line, with what could steer a terminal or cannot be encoded as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _parse_flags(argv: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(_help())
        sys.exit(0)
    try:
        _check_config_files(argv)
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            if is_config_flag(flags.FLAGS[name]):
                getattr(flags.FLAGS[name].value, "lock", None)  # where its file could not be read, this raises OSError
    except Exception as error:  # of many kinds: a wrong flag, key or value, and whatever a config file may raise
        raise UserError(_words(error)) from error
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # else absl shows what libraries log at INFO
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return rest


def _help() -> str:
    """The script's docstring, which shows typical command lines, its flags, and where the config's keys are."""
    parts = [(sys.modules["__main__"].__doc__ or "").rstrip(), flags.FLAGS.main_module_help().strip()]
    if any(is_config_flag(flags.FLAGS[name]) for name in flags.FLAGS):
        parts.append(f"The config's keys, with their meanings: {base.__file__}")
    parts.append(flags.FLAGS.module_help(__name__).strip())
    return "\n\n".join(parts)


def _check_config_files(argv: Sequence[str]) -> None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in flags.FLAGS and is_config_flag(flags.FLAGS[name]):
            path = Path((value if equals else following).partition(":")[0])
            if not path.is_file():
                known = [str(found) for found in sorted({*path.parent.glob("*.py"), *Path("configs").glob("*.py")})]
                near = difflib.get_close_matches(str(path), known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none here'}"
                raise UserError(f"--{name}={path}: no such config file; {meant}")


def _words(error: Exception) -> str:
    if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.partition(".")[0] in base.get_config():
        return f"--{error.flagname}: no such flag; a key of the config is set by --config.{error.flagname}=VALUE"
    if missing := re.fullmatch(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.", str(error)):
        return f"--{missing[1]}: missing ({flags.FLAGS[missing[1]].help}); --help shows typical command lines"
    if wrong := re.match(r"flag --(config\.[\w.]+)=(.*?): (?!Flag)", str(error), re.DOTALL):
        return f"--{wrong[1]}={wrong[2]}: {_expected(wrong[1]) or str(error)}"
    if error.args and isinstance(error.args[0], Exception):  # config_flags wraps the KeyError of an unknown key
        return _words(error.args[0])
    return f"no such key: {error.args[0]}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _expected(flag: str) -> str:
    """What kind of value a key of the config takes, with the default of configs/base.py."""
    value = base.get_config()
    for part in flag.split(".")[1:]:
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return "" if value is None else f"expected {type(value).__name__}, such as {value!r}"
