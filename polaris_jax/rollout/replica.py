"""One copy of the model at work: its page pool, its scheduler, and the device calls of one round."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.models.presets import ModelConfig
from polaris_jax.rollout import programs
from polaris_jax.rollout.kv_pages import NULL_PAGE, PagePool, pages_for
from polaris_jax.rollout.records import Response
from polaris_jax.rollout.sampling import Sampling
from polaris_jax.rollout.scheduler import Prefill, Scheduler
from polaris_jax.rollout.scheduler import Sequence as Scheduled

PREFILL_CHUNKS = (64, 256, 1024)  # tokens
PREFILL_ROWS = (1, 4, 16, 64)
PREFILL_TOKENS = 4096  # rows x chunk of one call
COPIES = 16  # pages in one call


@dataclass
class Counters:
    """Of one generate call. Seconds by what the host waited for.

    row_steps: rows x steps decoded, padding included. slot_steps: slots that could have been busy (at most as many as
    there were unfinished sequences) x steps.
    """

    prefill_s: float = 0.0
    decode_s: float = 0.0
    transfer_s: float = 0.0
    prefilled: int = 0
    sampled: int = 0
    row_steps: int = 0
    slot_steps: int = 0
    calls: int = 0
    preempted: int = 0


class Programs:
    """The jitted programs, shared by the lanes. traced: how often one was traced, and so compiled, so far."""

    def __init__(self, model: ModelConfig, steps: int, platform: str):
        self.model, self.steps, self.platform, self.roomy = model, steps, platform, platform == "cpu"
        self.traced = 0
        self.in_pieces = jax.jit(self._counted(programs.in_pieces), static_argnums=0)
        self.prefill = jax.jit(self._counted(programs.prefill), static_argnums=(0, 1), donate_argnums=3)
        self.clear = jax.jit(programs.clear, donate_argnums=0, keep_unused=True)
        self.copy = jax.jit(self._counted(programs.copy_pages), donate_argnums=0)
        self.decode = jax.jit(self._counted(programs.decode), static_argnums=(0, 1, 2, 3, 4), donate_argnums=6)

    def _counted(self, function):
        def call(*args):
            self.traced += 1
            return function(*args)

        return call


class Lane:
    """A page pool on `mesh` (only its tensor axis is larger than 1) and the sequences that use it."""

    def __init__(
        self, run: Programs, mesh: Mesh, params: Any, pool: programs.Pages, *, slots: int, sampling: Sampling,
        share: bool, counters: Counters,
    ):  # fmt: skip
        self.run, self.mesh, self.pool, self.counters = run, mesh, pool, counters
        pages, self.page_size = pool[0].shape[1:3]
        with jax.set_mesh(mesh):
            self.params = run.in_pieces(run.model, params) if run.roomy else params
        self.scheduler = Scheduler(PagePool(pages), self.page_size, slots, run.steps, share=share)
        self.responses: dict[Scheduled, Response] = {}
        self._static = static_sampling(sampling)
        self._numbers = (
            np.asarray(sampling.stop_ids or (-1,), np.int32),
            np.float32(sampling.temperature),
            np.float32(sampling.top_p),
            np.asarray(sampling.prefix, np.int32),
        )
        self._row_buckets = row_buckets(slots, fine=run.roomy)
        self._in_flight: tuple[list[Scheduled], programs.Decoded] | None = None

    def submit(self, responses: Sequence[Response], limits: Sequence[int]) -> None:
        """A group: responses to one prompt, with the most tokens of each."""
        scheduled = self.scheduler.submit(len(responses[0].prompt), limits)
        self.responses.update(zip(scheduled, responses, strict=True))

    def start_round(self) -> None:
        """Sends the next round to the devices: prefills, copies, decoding."""
        todo = self.scheduler.next_round()
        self.counters.preempted += todo.preempted
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            self._prefill([p for p in todo.prefills if p.start == 0])
            self._prefill([p for p in todo.prefills if p.start > 0])
            for i in range(0, len(todo.copies), COPIES):
                pairs = np.full((COPIES, 2), NULL_PAGE, np.int32)
                pairs[: len(todo.copies) - i] = todo.copies[i : i + COPIES]
                self.pool = self.run.copy(self.pool, pairs[:, 0], pairs[:, 1])
            if todo.prefills or todo.copies:
                jax.block_until_ready(self.pool)
            self.counters.prefill_s += time.perf_counter() - began
            self._decode(todo.running)

    def finish_round(self) -> list[Response]:
        """Waits for the devices, books what was sampled, and returns the finished responses."""
        running, decoded = self._in_flight
        self._in_flight = None
        began = time.perf_counter()
        jax.block_until_ready(decoded)
        waited = time.perf_counter()
        drawn, counts, stopped = jax.tree.map(np.asarray, decoded)
        self.counters.decode_s += waited - began
        self.counters.transfer_s += time.perf_counter() - waited
        self.counters.calls += 1
        self.counters.sampled += int(counts.sum())
        self.counters.row_steps += int(counts.max()) * len(counts)
        unfinished = len(running) + self.scheduler.waiting
        self.counters.slot_steps += int(counts.max()) * min(self.scheduler.slots, unfinished)
        finished = []
        for row, scheduled in enumerate(running):
            response, count = self.responses[scheduled], int(counts[row])
            response.parts.append(jax.tree.map(lambda x, row=row, count=count: x[:count, row], drawn))
            stop, full = bool(stopped[row]), scheduled.produced + count >= scheduled.limit
            self.scheduler.advance(scheduled, count, finished=stop or full)
            if stop or full:
                response.finish_reason = "stop" if stop else "length"
                finished.append(self.responses.pop(scheduled))
        return finished

    def _prefill(self, jobs: list[Prefill]) -> None:
        """Runs each job chunk by chunk, as many jobs in one call as fit."""
        chunks = [-(-size // self.page_size) * self.page_size for size in PREFILL_CHUNKS]
        starts = {job: job.start for job in jobs}
        while starts:
            left = max(job.end - start for job, start in starts.items())
            chunk = next((size for size in chunks if size >= left), chunks[-1])
            most = max(PREFILL_TOKENS // chunk, 1)
            batch = sorted(starts, key=starts.__getitem__)[: min(most, PREFILL_ROWS[-1])]
            rows = next(size for size in PREFILL_ROWS if size >= len(batch))
            width = bucket(max(starts[job] // self.page_size for job in batch))
            tokens = np.zeros((rows, chunk), np.int32)
            start, count = np.zeros((2, rows), np.int32)
            table = np.full((rows, width), NULL_PAGE, np.int32)
            write = np.full((rows, chunk // self.page_size), NULL_PAGE, np.int32)
            for row, job in enumerate(batch):
                begin = starts.pop(job)
                end = min(begin + chunk, job.end)
                response = self.responses[job.sequence]
                tokens[row, : end - begin] = np.concatenate([response.prompt, response.tokens])[begin:end]
                start[row], count[row] = begin, end - begin
                first, last = begin // self.page_size, pages_for(end, self.page_size)
                table[row, :first] = job.pages[:first]
                write[row, : last - first] = job.pages[first:last]
                if end < job.end:
                    starts[job] = end
            self.counters.prefilled += int(count.sum())
            self.pool = self.run.prefill(
                self.run.model, self.run.platform, self.params, self.pool, tokens, start, count, table, write
            )

    def _decode(self, running: list[Scheduled]) -> None:
        R = next(size for size in self._row_buckets if size >= len(running))
        width = bucket(max(1, max(pages_for(s.cached, self.page_size) for s in running)))
        spread = pages_for(self.run.steps + self.page_size - 1, self.page_size)  # pages that the steps can touch
        tokens, cached, produced, limits = np.zeros((4, R), np.int32)
        keys = np.zeros((R, 2), np.uint32)
        table = np.full((R, width), NULL_PAGE, np.int32)
        write = np.full((R, spread), NULL_PAGE, np.int32)
        for row, s in enumerate(running):
            response = self.responses[s]
            tokens[row], cached[row], produced[row], limits[row] = response.newest, s.cached, s.produced, s.limit
            keys[row] = response.key
            known = pages_for(s.cached, self.page_size)
            table[row, :known] = s.pages[:known]
            first = s.cached // self.page_size
            new = s.pages[first : first + spread]
            write[row, : len(new)] = new
        rows = programs.Rows(tokens, cached, produced, limits, keys, table, write)
        patience = np.int32(len(running) // 16)
        self.pool, decoded = self.run.decode(
            self.run.model, self._static, self.run.steps, self.run.roomy, self.run.platform, self.params, self.pool,
            rows, *self._numbers, patience,
        )  # fmt: skip
        self._in_flight = running, decoded


def static_sampling(sampling: Sampling) -> Sampling:
    """What of it decides the program; the numbers are arguments."""
    return replace(
        sampling,
        temperature=float(sampling.temperature > 0),
        top_p=1.0 if sampling.top_p == 1 else 0.5,
        max_response_tokens=len(sampling.prefix) + 1,
        stop_ids=(),
        prefix=(0,) * len(sampling.prefix),
    )


def pool_layout(model: ModelConfig, mesh: Mesh, pages: int, page_size: int) -> tuple[tuple[int, ...], NamedSharding]:
    """Shape and sharding of the keys, or values, of a pool: kv heads over the tensor axis where they divide."""
    shape = (model.num_hidden_layers, pages, page_size, model.num_key_value_heads, model.head_dim)
    axis = "tensor" if model.num_key_value_heads % mesh.shape["tensor"] == 0 else None
    return shape, NamedSharding(mesh, PartitionSpec(None, None, None, axis, None))


def new_pool(model: ModelConfig, mesh: Mesh, pages: int, page_size: int, dtype: str) -> programs.Pages:
    """An empty page pool."""
    shape, sharding = pool_layout(model, mesh, pages, page_size)
    return tuple(jnp.zeros(shape, dtype, device=sharding) for _ in range(2))


def bucket(n: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: few sizes, at most a half too large."""
    if n <= 2:
        return n
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def row_buckets(slots: int, *, fine: bool) -> list[int]:
    """How many rows a decoding call may have, smallest first: the slots, then a quarter of them, down to at most 16.

    fine: three quarters, a half, and so on, down to at most 4, for CPUs, where a row of padding costs as much as any
    other. Accelerators read the weights once a step however many rows there are, and gain less than the compilations
    cost.
    """
    sizes = {slots}
    size, least = slots, 4 if fine else 16
    while size > least:
        if fine:
            sizes.add(-(-size * 3 // 4))
        size = -(-size // (2 if fine else 4))
        sizes.add(size)
    return sorted(sizes)
