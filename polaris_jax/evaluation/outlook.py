"""How long an evaluation takes, before it starts and while it runs, and the scores of what is complete so far.

Times come from measured speeds. How long responses get nobody knows before they end: at first they are taken to have
half of the token limit, and then what has been sampled tells more and more.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from polaris_jax.evaluation.evaluate import summarize
from polaris_jax.evaluation.records import Record, group
from polaris_jax.evaluation.report import table
from polaris_jax.rewards import VerifierPool
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.supervision.progress import clock, in_background
from polaris_jax.types import Problem, Prompt

ASSUMED = 0.5  # of the limit: the length of a response of which nothing is known
WORTH_IT = 8  # device calls: of shorter responses all are sampled in little more time than measuring takes
TICK_S, FIRST_S, EVERY_S = 0.5, 60.0, 300.0  # between two looks; until the first words, and between two of them


def measured_speed(
    engine: RolloutEngine, params: Any, prompts: Sequence[Prompt], samples: int, sampling: Sampling
) -> float:
    """Tokens a second of all slots together, over three device calls.

    The programs are those of the evaluation, compiled on the way. Responses are short then: long ones are slower.
    """
    call = engine.config.tokens_per_call
    slots = engine.config.slots * engine.mesh.size // engine.mesh.shape["tensor"]
    few = prompts[: math.ceil(slots / samples)]
    for calls in (1, 3):  # the first compiles
        limits = np.full((len(few), samples), calls * call)
        for _ in engine.generate(params, few, samples, sampling, 0, limits=limits):
            pass
    return engine.metrics["tokens"] / max(engine.metrics["seconds"] - engine.metrics["weight_sync_s"], 1e-9)


def forecast(responses: int, limit: int, speed: float) -> str:
    """What to expect before anything is sampled. limit: tokens of a response. speed: tokens a second."""
    most = responses * limit / speed
    return (
        f"{responses:,} responses at {speed:,.0f} tokens/s (measured): about {clock(ASSUMED * most)} if they take "
        f"{ASSUMED:.0%} of {limit:,} tokens, at most {clock(most)}"
    )


def seconds_left(missing: int, limit: int, lengths: Sequence[int], running: int, speed: float) -> float:
    """Seconds until `missing` responses are sampled.

    lengths: tokens of those that ended. running: tokens of those that have not, together. Every token is taken to be as
    likely the last one: then the mean length is all tokens over all ends, and what has not ended has as much before it,
    up to the limit. One response of half the limit stands for what is not known.
    """
    mean = (sum(lengths) + running + ASSUMED * limit) / (len(lengths) + 1)
    return max(min(missing * mean, missing * limit - running), 0) / speed


class Outlook:
    """What is known while an evaluation runs. by_samples: its problems by the number of responses that each gets."""

    def __init__(self, engine: RolloutEngine, by_samples: dict[int, Sequence[Problem]], limit: int):
        self._engine, self._limit = engine, limit
        self._wanted = {(p.source, p.id): (p, samples) for samples, found in by_samples.items() for p in found}
        self._records: list[Record] = []
        self._before = 0  # tokens of the records that were there before the present call of the engine

    def add(self, record: Record) -> None:
        """Takes in a judged response."""
        self._records.append(record)

    def begin(self) -> None:
        """Says that the engine is about to be called."""
        self._before = sum(record.length or 0 for record in self._records)

    def left(self) -> str:
        """Such as "about 1:05:00 left at 2,310 tokens/s", or "" while nothing has been sampled."""
        metrics, lengths = self._engine.metrics, [record.length or 0 for record in self._records]
        if not metrics.get("tokens"):
            return ""
        total = sum(samples for _, samples in self._wanted.values()) / jax.process_count()
        running = max(metrics["tokens"] - (sum(lengths) - self._before), 0)
        speed = metrics["tokens"] / metrics["seconds"]
        seconds = seconds_left(max(round(total) - len(lengths), 0), self._limit, lengths, running, speed)
        return f"about {clock(seconds)} left at {speed:,.0f} tokens/s"

    def complete(self) -> tuple[list[Problem], list[Record]]:
        """The problems with all of their responses, and those."""
        grouped = group(list(self._records))
        full = [key for key, (_, samples) in self._wanted.items() if len(grouped.get(key, [])) == samples]
        return [self._wanted[key][0] for key in full], [record for key in full for record in grouped[key]]

    def table(self, verifier: VerifierPool) -> Table | None:
        """The scores of the complete problems, or None where there are none."""
        problems, records = self.complete()
        if not problems:
            return None
        title = f"so far: {len(problems)} of {len(self._wanted)} problems"
        return table(summarize(problems, records, verifier), title)


@contextmanager
def told(outlook: Outlook, verifier: VerifierPool) -> Iterator[None]:
    """Within the block the early table and the time left are printed now and then; of several processes by one."""
    console = Console(quiet=not is_writer())

    def tell(done: threading.Event) -> None:
        due = time.monotonic() + FIRST_S
        while not done.wait(TICK_S):
            if time.monotonic() >= due:
                due = time.monotonic() + EVERY_S
                if early := outlook.table(verifier):
                    console.print(early)
                console.print(outlook.left(), markup=False, soft_wrap=True)

    with in_background("outlook", tell):
        yield
