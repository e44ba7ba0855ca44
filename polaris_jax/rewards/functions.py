"""Rewards beside the verdict: what `config.reward.functions` names, and how a worker calls it.

A function takes a response and its problem and returns a number. It is one of `FUNCTIONS`, or stands in a Python file
that the user names: that is the user's own program, as a config file is, and nothing that a model or a dataset wrote.
What needs the whole group, such as its lengths, is one of `of_groups.GROUP_FUNCTIONS` instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from polaris_jax.errors import UserError
from polaris_jax.rewards import of_responses
from polaris_jax.types import Problem

VERIFY = "verify"  # the verdict itself, as a reward
FUNCTIONS: dict[str, Callable[[str, Problem], float]] = {
    "format": of_responses.format_reward,
    "repetition": of_responses.repetition,
    "language_consistency": of_responses.language_consistency,
}


class RewardFunction(NamedTuple):
    """A function that workers call. file: the absolute path of the user's file, "" for one of `FUNCTIONS`.

    source: the text of the file when the run began to read it, so that all workers run the same, whatever becomes of
    the file meanwhile.
    """

    name: str
    file: str = ""
    source: str = ""

    @property
    def sha256(self) -> str:
        """Of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def short_name(function: str) -> str:
    """What metrics call a function: "my_rewards.py:format_reward" is format_reward."""
    return function.rpartition(":")[2]


def weights(functions: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Of `config.reward.functions`, by short name."""
    return {short_name(function): float(weight) for function, weight in functions}


def response_functions(functions: Sequence[tuple[str, float]], others: Sequence[str] = ()) -> list[RewardFunction]:
    """Those of `config.reward.functions` that workers call, files read. others: names that stand for something else.

    Raises UserError for a name that is not known, one that is there twice, and a file that cannot be read.
    """
    known = [VERIFY, *FUNCTIONS, *others]
    names = [short_name(function) for function, _ in functions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"config.reward.functions: {', '.join(sorted(twice))} is there twice; metrics need other names")
    found = []
    for function, _ in functions:
        file, colon, name = function.rpartition(":")
        if colon and name in (VERIFY, *others):
            raise UserError(
                f"config.reward.functions: {function}: {name} is another reward's name; rename the function"
            )
        if colon:
            found.append(RewardFunction(name, str(Path(file).expanduser().absolute()), _read(file)))
        elif name in FUNCTIONS:
            found.append(RewardFunction(name))
        elif name not in known:
            raise UserError(
                f"config.reward.functions: no function {name!r}; expected one of {', '.join(known)}, or "
                "FILE.py:FUNCTION"
            )
    return found


def _read(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.reward.functions: {file}: cannot be read: {error}") from error


# In a worker.

_modules: dict[str, ModuleType] = {}  # of users' files, by their text


class _Kept(SourceLoader):
    """Loads a module from a text that was read before."""

    def __init__(self, file: str, source: str):
        self._file, self._source = file, source

    def get_filename(self, fullname: str) -> str:
        return self._file

    def get_data(self, path: str) -> bytes:
        return self._source.encode()


def is_loaded(function: RewardFunction) -> bool:
    """Whether `find` has nothing to import."""
    return not function.file or function.source in _modules


def find(function: RewardFunction) -> Callable[[str, Problem], Any]:
    """The function itself; its file is imported, once, and finds modules beside it. Raises what the import raises,
    and AttributeError or TypeError where the file has no such function."""
    if not function.file:
        return FUNCTIONS[function.name]
    if not is_loaded(function):
        path = Path(function.file)
        sys.path.insert(0, str(path.parent))
        loader = _Kept(function.file, function.source)
        spec = importlib.util.spec_from_loader(f"rewards_of_{path.stem}", loader, origin=function.file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        _modules[function.source] = module
    found = getattr(_modules[function.source], function.name)
    if not callable(found):
        raise TypeError(f"{function.name} is a {type(found).__name__}, expected a function")
    return found


def call(function: RewardFunction, response: str, problem: Problem) -> float:
    """What the function gives. Raises what it raises, and ValueError where that is no finite number."""
    value = find(function)(response, problem)
    if value is None or isinstance(value, str) or not math.isfinite(value):
        raise ValueError(f"returned {value!r}, expected a finite number")
    return float(value)
