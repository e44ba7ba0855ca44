"""One step off-policy: the next batch is sampled on devices of its own while the present one is trained on.

    step         n-1            n                n+1
    sampling     batch n        batch n+1        batch n+2
    training     batch n-1      batch n          batch n+1      with ratios to the log-probs that were recorded

A stage's first batch is sampled alone, and nothing is sampled beside its last. What was sampled and not yet trained on
is a part of the checkpoint: the parameters that it comes from are gone by then, and it is small beside them, so that
saving it is simpler than saving those to sample it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from polaris_jax.types import Group


class SampledBatch(NamedTuple):
    """A judged batch. groups: in the order of the prompts. texts: of their responses. reasons: of their verdicts.
    metrics: of how it was made."""

    groups: list[Group]
    texts: list[list[str]]
    reasons: list[list[str]]
    metrics: dict[str, float]


@contextmanager
def beside(function: Callable, *args: Any, stop: Callable[[], None]) -> Iterator[Future]:
    """Calls `function(*args)` in a thread while the block runs; the future that it yields is done when the block ends.

    stop: called where the block fails; it ends the function. An error of the function is raised at the block's end.
    """
    with ThreadPoolExecutor(1, "sampling") as threads:
        future = threads.submit(function, *args)
        try:
            yield future
            future.result()
        except BaseException:
            stop()
            raise
