"""What a `generate` call counts, and the metrics made of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from polaris_jax.rollout.records import Response
from polaris_jax.rollout.scheduler import Scheduled
from polaris_jax.sharding import multihost


@dataclass
class Counters:
    """What the replicas of one process did. Seconds by what the host waited for.

    slot_steps: slots x steps decoded, padding included. fillable_steps: slots that could have been busy (at most as
    many as there were unfinished sequences) x steps.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    transfer_s: float = 0.0
    prefilled: int = 0
    sampled: int = 0
    slot_steps: int = 0
    fillable_steps: int = 0
    calls: int = 0
    preempted: int = 0


@dataclass
class GenerateCall:
    """One call. began: when, in seconds of `perf_counter`. traced: programs, before it. weight_sync_s: what that took.

    sequence_pages: as many as its longest sequence can have, at least. finished, total: responses. longest: tokens of
    the longest response so far, finished or not.
    """

    began: float
    traced: int
    counters: Counters = field(default_factory=Counters)
    weight_sync_s: float = 0.0
    sequence_pages: int = 0
    finished: int = 0
    total: int = 0
    longest: int = 0

    def count(self, finished: Sequence[Response], running: Sequence[Scheduled]) -> None:
        """Books one round, after which those are finished and these are not."""
        self.finished += len(finished)
        self.longest = max([self.longest, *(len(r.tokens) for r in finished), *(s.produced for s in running)])

    def of_all(self) -> GenerateCall:
        """The same of all processes together, each of which calls it: counts are summed, seconds averaged."""
        everyone = multihost.gather([asdict(self.counters), self.finished, self.total, self.longest])
        counters, finished, total, longest = zip(*everyone, strict=True)
        sums = {name: sum(each[name] for each in counters) for name in asdict(self.counters)}
        sums |= {name: value / len(everyone) for name, value in sums.items() if name.endswith("_s")}
        return replace(self, counters=Counters(**sums), finished=sum(finished), total=sum(total), longest=max(longest))

    def metrics(self, traced: int) -> dict[str, float]:
        """The metrics so far. traced: programs, by now."""
        c, seconds = self.counters, time.perf_counter() - self.began
        return {
            "tokens": c.sampled,
            "seconds": seconds,
            "tokens_per_s": c.sampled / seconds,
            "occupancy": c.sampled / max(c.slot_steps, 1),
            "slot_occupancy": c.sampled / max(c.fillable_steps, 1),
            "preempted": c.preempted,
            "prefilled_tokens": c.prefilled,
            "device_calls": c.calls,
            "compilations": traced - self.traced,
            "weight_sync_s": self.weight_sync_s,
            "prefill_s": c.prefill_s,
            "decode_s": c.decode_s,
            "transfer_s": c.transfer_s,
            "host_s": seconds - self.weight_sync_s - c.prefill_s - c.decode_s - c.transfer_s,
            "finished": self.finished,
            "total": self.total,
            "longest": self.longest,
        }
