"""Several sources with weights: which problems a step draws from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polaris_jax.data.curriculum import Curriculum, draw
from polaris_jax.data.rows import SUFFIXES
from polaris_jax.types import Prompt

GOLDEN = (5**0.5 - 1) / 2
STREAM = 2  # keeps these draws apart from the others that come from a seed and an epoch


def mixed_sources(mix: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The weight of each source of `config.data.mix`, by the name that its problems have in metrics.

    That is a file's name without its suffix, and the whole text for what is no file or where two would be called the
    same.
    """
    short = [Path(source).stem if source.endswith(SUFFIXES) else source for source, _ in mix]
    names = [name if short.count(name) == 1 else source for name, (source, _) in zip(short, mix, strict=True)]
    return {name: float(weight) for name, (_, weight) in zip(names, mix, strict=True)}


def draw_mixed(
    curriculum: Curriculum, prompts: Sequence[Prompt], count: int, seed: int, weights: Mapping[str, float]
) -> tuple[list[Prompt], Curriculum]:
    """The next `count` distinct prompts from sources with these weights, and the curriculum behind them.

    Each source has epochs of its own, as in `draw`; over any stretch of a run its share is its weight's to a few
    problems. A source with too few problems left for its part of a step leaves the rest to the others. Raises
    ValueError when there are fewer than `count` problems.
    """
    if count > len(prompts):
        raise ValueError(f"a step needs {count} problems, there are {len(prompts)}")
    members = {source: [prompt for prompt in prompts if prompt.problem.source == source] for source in weights}
    rng = np.random.default_rng([seed, curriculum.epoch, STREAM])
    at = (rng.random() + GOLDEN * (curriculum.position + np.arange(count))) % 1  # evenly spread, in no period
    counts = _counts(at, list(weights.values()), [len(found) for found in members.values()])
    chosen, places = [], dict(curriculum.places)
    for (source, found), part in zip(members.items(), counts, strict=True):
        epoch, position = places.get(source, (0, 0))
        drawn, behind = draw(Curriculum(epoch, position), found, part, seed)
        chosen += drawn
        places[source] = behind.epoch, behind.position
    return chosen, replace(curriculum, position=curriculum.position + count, places=places)


def _counts(at: np.ndarray, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """How many of the numbers in [0, 1) fall to each source, none of which gets more than it has."""
    sources = np.flatnonzero(sizes)
    borders = np.cumsum([weights[source] for source in sources])
    fallen = np.minimum(np.searchsorted(borders, at * borders[-1], side="right"), len(sources) - 1)
    counts = np.bincount(sources[fallen], minlength=len(sizes)).tolist()
    left = sum(max(count - size, 0) for count, size in zip(counts, sizes, strict=True))
    counts = [min(count, size) for count, size in zip(counts, sizes, strict=True)]
    for source in sorted(range(len(sizes)), key=lambda source: -weights[source]):
        more = min(left, sizes[source] - counts[source])
        counts[source], left = counts[source] + more, left - more
    return counts
