"""Problems of reasoning-gym (an optional extra, `pip install reasoning-gym`), by the names of its datasets."""

from __future__ import annotations

from itertools import count
from typing import Any

from absl import logging

from polaris_jax.data.problems import problem_id, with_suffix
from polaris_jax.errors import UserError
from polaris_jax.rewards import gym
from polaris_jax.types import Problem

PREFIX = "reasoning_gym:"
PROBLEMS = 4096  # of each dataset, where no number is asked for; they are endless, or few
TEST_SHARE = 16  # one problem in so many is held out
CHUNK = 512  # problems made at a time
MOST_CHUNKS = 40  # after which a dataset that repeats itself has no more


def names_in(source: str) -> list[str]:
    """The datasets that "reasoning_gym:chain_sum,letter_counting" names. Raises UserError where it names none."""
    names = [name.strip() for name in source.removeprefix(PREFIX).split(",") if name.strip()]
    if not names:
        raise UserError(f"{source}: names no dataset; expected such as {PREFIX}chain_sum,letter_counting")
    return names


def problems(source: str, split: str, most: int, suffix: str, seed: int = 0) -> list[Problem]:
    """At most `most` distinct problems of each dataset that `source` names; `split` is "train" or "test".

    A problem's split is decided by a hash of its question, so that the splits never overlap. Their `source` is the
    dataset's name, their `metadata` what its scorer needs; the scorer judges the boxed answer. Left out, and counted in
    the log, are problems whose entry JSON cannot hold. Raises UserError where reasoning-gym is not installed, has no
    such dataset, or evaluates answers to it as code.
    """
    return [problem for name in names_in(source) for problem in _of_dataset(name, split, most, suffix, seed)]


def _of_dataset(name: str, split: str, most: int, suffix: str, seed: int) -> list[Problem]:
    try:
        gym.scorer(name)
        create = gym.load().create_dataset
    except ImportError as error:
        raise UserError(f"{PREFIX}{name}: needs `pip install reasoning-gym` ({error})") from error
    except gym.UnknownDataset as error:
        raise UserError(f"{PREFIX}{error}") from error
    found: dict[str, Problem] = {}
    unusable = 0
    for chunk in count():
        before = len(found)
        for entry in create(name, size=CHUNK, seed=seed * MOST_CHUNKS + chunk):
            id_ = problem_id(entry["question"])
            if len(found) < most and (int(id_, 16) % TEST_SHARE == 0) == (split == "test") and id_ not in found:
                try:
                    found[id_] = _problem(id_, name, entry, suffix)
                except (TypeError, ValueError):
                    unusable += 1
        if len(found) >= most or chunk == MOST_CHUNKS - 1 or (split == "train" and len(found) == before):
            break
    if unusable:
        logging.warning("%s%s: %d problems skipped, whose entries JSON cannot hold", PREFIX, name, unusable)
    if not found:
        raise UserError(f"{PREFIX}{name}: no problem of the split {split!r} can be used")
    return list(found.values())


def _problem(id_: str, name: str, entry: dict[str, Any], suffix: str) -> Problem:
    answer = "" if entry["answer"] is None else str(entry["answer"])
    question = with_suffix(entry["question"].strip(), suffix)
    return Problem(id_, question, (answer,), name, kind="reasoning_gym", metadata=gym.make_metadata(name, entry))
