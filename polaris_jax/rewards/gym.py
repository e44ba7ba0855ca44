"""The scorers of reasoning-gym (an optional extra), which judge answers to problems of kind "reasoning_gym"."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

# What some scorers do with the answer that a model wrote; sympy's parsers evaluate what they read.
EVALUATING = frozenset({"eval", "exec", "compile", "parse_expr", "sympify", "__import__"})


class UnknownDataset(ValueError):
    """There is no such dataset in reasoning-gym, or its scorer cannot be used."""


def make_metadata(dataset: str, entry: dict[str, Any]) -> str:
    """A problem's metadata: all that its scorer needs. Raises TypeError where the entry holds more than JSON can."""
    return json.dumps({"dataset": dataset, "entry": entry})


def score(answer: str, metadata: str) -> float:
    """What the scorer that `metadata` names gives the answer, from 0 to 1. Raises UnknownDataset."""
    found = json.loads(metadata)
    return float(scorer(found["dataset"])(answer, found["entry"]))


def load() -> ModuleType:
    """The library, which takes a second to import. Raises ImportError where it is not installed."""
    return importlib.import_module("reasoning_gym")


@cache
def scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a dataset of reasoning-gym, with the dataset's default settings.

    Raises UnknownDataset where there is none, and where it evaluates answers as code: nothing that a model wrote is.
    """
    factory = load().factory
    if dataset not in factory.DATASETS:
        raise UnknownDataset(f"{dataset}: reasoning-gym has no such dataset")
    try:
        found = factory.get_score_answer_fn(dataset)
    except Exception as error:  # those made of others have no scorer of their own
        raise UnknownDataset(f"{dataset}: reasoning-gym makes no scorer of it: {error}") from error
    if calls := EVALUATING & _called(type(found.__self__), "score_answer"):
        raise UnknownDataset(
            f"{dataset}: its scorer in reasoning-gym calls {', '.join(sorted(calls))} on what the model wrote"
        )
    return found


def _called(owner: type, method: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """Names that a method calls, itself or through methods of its class and functions of its module."""
    function = getattr(owner, method, None) or getattr(inspect.getmodule(owner), method, None)
    if method in seen or not inspect.isfunction(function):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return names.union(*(_called(owner, name, seen | {method}) for name in names))
