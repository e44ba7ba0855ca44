"""One copy of the model at work: its page pool, its scheduler, and the device calls of one round."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polaris_jax.compilations import Compilations
from polaris_jax.models.presets import ModelConfig
from polaris_jax.rollout import programs
from polaris_jax.rollout.kv_pages import NULL_PAGE, pages_for
from polaris_jax.rollout.metrics import GenerateCall
from polaris_jax.rollout.platforms import Platform
from polaris_jax.rollout.records import Response
from polaris_jax.rollout.sampling import Sampling, split
from polaris_jax.rollout.scheduler import Prefill, Scheduled, Scheduler

Queue = deque[tuple[list[Response], list[int]]]  # groups: responses to one prompt, and the most tokens of each

PREFILL_CHUNKS = (64, 256, 1024)  # tokens
PREFILL_SHORTEST = 32  # tokens of the shortest chunk where padding costs more than compiling
PREFILL_BATCHES = (1, 4, 16, 64)  # chunks in one call
PREFILL_TOKENS = 4096  # of all chunks in one call
COPIES = 16  # pages in one call
POLL_S = 5e-4  # between two looks at devices of which any may be the first to be done


class Programs:
    """The jitted programs, shared by the replicas, and how many of them were compiled so far."""

    def __init__(self, model: ModelConfig, steps: int, platform: Platform):
        self.model, self.steps, self.platform, self.compilations = model, steps, platform, Compilations()
        counted = self.compilations.of
        self.prefill = jax.jit(counted(programs.prefill), static_argnums=(0, 1), donate_argnums=3)
        self.copy = jax.jit(counted(programs.copy_pages), donate_argnums=0)
        self.decode = jax.jit(counted(programs.decode), static_argnums=0, donate_argnums=2)


class Replica:
    """A page pool on `mesh` (only its tensor axis is larger than 1) and the sequences that use it."""

    def __init__(
        self,
        run: Programs,
        mesh: Mesh,
        params: Any,
        pool: programs.Pages,
        scheduler: Scheduler,
        sampling: Sampling,
        call: GenerateCall,
    ):
        self.run, self.mesh, self.params, self.pool = run, mesh, params, pool
        self.scheduler, self.counters, self._sequence_pages = scheduler, call.counters, call.sequence_pages
        self.responses: dict[Scheduled, Response] = {}
        static, self._numbers = split(sampling)
        self._program = programs.Program(run.model, static, run.steps, run.platform)
        self._slot_buckets = run.platform.slot_buckets(scheduler.slots)
        self._running: list[Scheduled] = []  # in the present round
        self._awaited: programs.Pages | programs.Decoded | None = None  # what the devices are at: prefill or decoding

    def submit(self, responses: Sequence[Response], limits: Sequence[int]) -> None:
        """A group: responses to one prompt, with the most tokens of each."""
        scheduled = self.scheduler.submit(len(responses[0].prompt), limits)
        self.responses.update(zip(scheduled, responses, strict=True))

    @property
    def at_work(self) -> bool:
        """Whether a round is under way."""
        return self._awaited is not None

    @property
    def is_ready(self) -> bool:
        """Whether the devices have done what `proceed` needs."""
        return all(x.is_ready() for x in jax.tree.leaves(self._awaited))

    def wait(self) -> None:
        """Returns when `is_ready` is true."""
        jax.block_until_ready(self._awaited)

    def start_round(self) -> None:
        """Sends the next round to the devices: prefills and copies, or where there are none, decoding."""
        todo = self.scheduler.next_round()
        self._running = todo.running
        self.counters.preempted += todo.preempted
        if not todo.prefills and not todo.copies:
            return self._decode()
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            self._prefill([p for p in todo.prefills if p.start == 0])
            self._prefill([p for p in todo.prefills if p.start > 0])
            for i in range(0, len(todo.copies), COPIES):
                pairs = np.full((COPIES, 2), NULL_PAGE, np.int32)
                pairs[: len(todo.copies) - i] = todo.copies[i : i + COPIES]
                self.pool = self.run.copy(self.pool, pairs[:, 0], pairs[:, 1])
        self._awaited = self.pool
        self.counters.prefill_s += time.perf_counter() - began

    def proceed(self, waited_s: float) -> list[Response]:
        """What follows on a call that is ready: decoding behind a prefill; behind decoding the round ends.

        waited_s: how long the host had nothing else to do than to wait for it. Returns the responses that are finished.
        """
        if not isinstance(self._awaited, programs.Decoded):
            self.counters.prefill_s += waited_s
            self._decode()
            return []
        decoded, self._awaited = self._awaited, None
        began = time.perf_counter()
        drawn, counts, stopped = jax.tree.map(np.asarray, decoded)
        self.counters.decode_s += waited_s
        self.counters.transfer_s += time.perf_counter() - began
        self.counters.calls += 1
        self.counters.sampled += int(counts.sum())
        self.counters.slot_steps += int(counts.max()) * len(counts)
        unfinished = len(self._running) + self.scheduler.waiting
        self.counters.fillable_steps += int(counts.max()) * min(self.scheduler.slots, unfinished)
        finished = []
        for slot, scheduled in enumerate(self._running):
            response, count = self.responses[scheduled], int(counts[slot])
            response.parts.append(jax.tree.map(lambda x, slot=slot, count=count: x[:count, slot], drawn))
            stop, full = bool(stopped[slot]), scheduled.produced + count >= scheduled.limit
            self.scheduler.advance(scheduled, count, finished=stop or full)
            if stop or full:
                response.finish_reason = "stop" if stop else "length"
                finished.append(self.responses.pop(scheduled))
        return finished

    def _prefill(self, jobs: list[Prefill]) -> None:
        """Runs each job chunk by chunk, as many jobs with chunks of one size in one call as fit."""
        page_size, few = self.scheduler.page_size, self.run.platform.few_programs
        starts = {job: job.start for job in jobs}
        while starts:
            first = [job for job, start in starts.items() if start == 0]
            ready = first or sorted(starts, key=starts.__getitem__)
            sizes, most = (PREFILL_CHUNKS, PREFILL_TOKENS) if first or not few else (PREFILL_CHUNKS[-1:], 1)
            sizes = [-(-size // page_size) * page_size for size in sizes]
            T_of = {job: chunk_size(job.end - starts[job], sizes, few) for job in ready}
            T = T_of[ready[0]]
            batch = [job for job in ready if T_of[job] == T][: max(most // T, 1)]
            B = batch_size(len(batch), few)
            batch = batch[:B]
            before = max(starts[job] // page_size for job in batch)
            width = min(power_of_two(before), self._sequence_pages) if few else bucket(before)
            chunks = programs.Chunks(
                tokens=np.zeros((B, T), np.int32),
                starts=np.zeros(B, np.int32),
                table=np.full((B, width), NULL_PAGE, np.int32),
                write=np.full((B, pages_for(T, page_size)), NULL_PAGE, np.int32),
            )
            for i, job in enumerate(batch):
                begin = starts.pop(job)
                end = min(begin + T, job.end)
                response = self.responses[job.sequence]
                chunks.tokens[i, : end - begin] = np.concatenate([response.prompt, response.tokens])[begin:end]
                chunks.starts[i] = begin
                first, last = begin // page_size, pages_for(end, page_size)
                chunks.table[i, :first] = job.pages[:first]
                chunks.write[i, : last - first] = job.pages[first:last]
                self.counters.prefilled += end - begin
                if end < job.end:
                    starts[job] = end
            self.pool = self.run.prefill(self.run.model, self.run.platform, self.params, self.pool, chunks)

    def _decode(self) -> None:
        running, page_size = self._running, self.scheduler.page_size
        S = next(size for size in self._slot_buckets if size >= len(running))
        width = bucket(max(1, max(pages_for(s.cached, page_size) for s in running)))
        width = self._sequence_pages if self.run.platform.few_programs else width
        spread = pages_for(self.run.steps + page_size - 1, page_size)  # pages that the steps can touch
        slots = programs.Slots(
            *np.zeros((4, S), np.int32),
            keys=np.zeros((S, 2), np.uint32),
            table=np.full((S, width), NULL_PAGE, np.int32),
            write=np.full((S, spread), NULL_PAGE, np.int32),
        )
        for i, s in enumerate(running):
            response = self.responses[s]
            slots.tokens[i], slots.keys[i] = response.newest, response.key
            slots.cached[i], slots.produced[i], slots.limits[i] = s.cached, s.produced, s.limit
            held, first = pages_for(s.cached, page_size), s.cached // page_size
            slots.table[i, :held] = s.pages[:held]
            new = s.pages[first : first + spread]
            slots.write[i, : len(new)] = new
        patience = np.int32(len(running) // 16)
        with jax.set_mesh(self.mesh):
            self.pool, self._awaited = self.run.decode(
                self._program, self.params, self.pool, slots, self._numbers, patience
            )


def deal(queue: Queue, replicas: Sequence[Replica]) -> None:
    """Submits all groups, each to the replica whose responses so far may have the fewest tokens together.

    Who gets what does not depend on which replica is faster: the same call gives the same batches, and so the same
    roundings, whenever it is repeated.
    """
    most = [0] * len(replicas)
    for responses, limits in queue:
        least = most.index(min(most))
        most[least] += sum(limits)
        replicas[least].submit(responses, limits)


def finish_first(replicas: Sequence[Replica]) -> list[Response]:
    """Waits for the replica at work whose device call is done first, and lets it and all that are done by then proceed.

    The others compute meanwhile, however long. Returns the responses that are finished.
    """
    at_work, began = [replica for replica in replicas if replica.at_work], time.perf_counter()
    if len(at_work) == 1:
        at_work[0].wait()
    while at_work and not (ready := [replica for replica in at_work if replica.is_ready]):
        time.sleep(POLL_S)
    if not at_work:
        return []
    waited_s = time.perf_counter() - began
    return ready[0].proceed(waited_s) + [response for replica in ready[1:] for response in replica.proceed(0.0)]


def chunk_size(tokens: int, sizes: Sequence[int], few: bool) -> int:
    """Tokens of the chunk that a job's next `tokens` go into, the largest of `sizes` where they are more."""
    size = next((size for size in sizes if size >= tokens), sizes[-1])
    return size if few else min(size, power_of_two(max(tokens, PREFILL_SHORTEST)))


def batch_size(chunks: int, few: bool) -> int:
    """Chunks of the call that `chunks` begin with, some of them padding: at most a quarter, where padding is dear."""
    size = next(size for size in PREFILL_BATCHES if size >= min(chunks, PREFILL_BATCHES[-1]))
    return size if few or chunks >= 0.75 * size else max(size for size in PREFILL_BATCHES if size <= chunks)


def power_of_two(n: int) -> int:
    """The next of 0, 1, 2, 4, 8, 16, ..."""
    return 1 << (n - 1).bit_length() if n else 0


def bucket(n: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: few sizes, at most a half too large."""
    if n <= 2:
        return n
    power = power_of_two(n)
    return power * 3 // 4 if n <= power * 3 // 4 else power
