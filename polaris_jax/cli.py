"""How every script starts: flags are parsed, a user's mistake becomes one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections.config_flags.config_flags import is_config_flag

from polaris_jax.errors import UserError

# A full or read-only disk, where the job cannot go on without writing; nothing of the program is at fault.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Parses flags (`argv`, default `sys.argv`), calls `main([program])` and exits with what it returns (None: 0).

    A `UserError` from `main`, a bad flag, a stray argument or a disk that cannot be written prints `error: ...` in one
    line on stderr and exits with code 2. Any other exception keeps its traceback.
    """
    try:
        app.run(main, argv=None if argv is None else list(argv), flags_parser=_parse_flags)
    except UserError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(error)
    sys.exit(0)


def _fail(error: Exception) -> NoReturn:
    print("error:", _one_line(str(error)), file=sys.stderr)
    sys.exit(2)


def _one_line(text: str) -> str:
    """The text in one line, with what could steer a terminal or cannot be encoded as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _parse_flags(argv: list[str]) -> list[str]:
    try:
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


def _words(error: Exception) -> str:
    if error.args and isinstance(error.args[0], Exception):  # config_flags wraps the KeyError of an unknown key
        return _words(error.args[0])
    return f"no such key: {error.args[0]}" if isinstance(error, KeyError) else str(error) or type(error).__name__
