"""The rollout engine: prompts in, responses out, each as soon as it is finished (continuous batching, paged cache)."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax import supervision
from polaris_jax.errors import UserError
from polaris_jax.models.presets import ModelConfig, Yarn
from polaris_jax.rollout.kv_pages import pages_for
from polaris_jax.rollout.programs import Pages
from polaris_jax.rollout.quantise import weight_bytes
from polaris_jax.rollout.records import Progress, Response
from polaris_jax.rollout.replica import Counters, Lane, Programs, bucket, new_pool
from polaris_jax.rollout.sampling import Sampling, sequence_key
from polaris_jax.rollout.weight_sync import HandOver, lane_meshes
from polaris_jax.sharding import multihost
from polaris_jax.supervision import DeferredSignals, preemption
from polaris_jax.types import Prompt, Rollout

Queue = deque[tuple[list[Response], list[int]]]  # groups: responses to one prompt, and the most tokens of each


class RolloutEngine:
    """Samples responses with the trainer's model.

    model: shape and compute dtype. mesh: the trainer's, or one of other devices; every group of `tensor` devices
    decodes on its own. config: the section `rollout` of configs/base.py. Nothing is compiled or allocated until
    `generate`. Raises UserError when the weights and the page pool cannot fit on a device.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, config: ConfigDict, *, share_prefix: bool = True):
        self.model = sampler_model(model, config)
        self.mesh, self.config = mesh, config
        self.metrics: dict[str, float] = {}
        self.share_prefix = share_prefix
        self._lanes = lane_meshes(mesh)
        self._hand_over = HandOver(self.model, mesh, self._lanes, config.weights)
        self._cache_dtype = config.cache_dtype or model.dtype
        self._programs = Programs(self.model, config.tokens_per_call, mesh.devices.flat[0].platform)
        self._sequence_pages = 0  # of the longest sequence so far
        self._stop = multihost.Notice()
        self._at_work: list[Lane] = []
        self._pools: list[Pages] = []  # of the last call, on CPUs, where clearing one takes less than a new one
        self._check_fit()

    def generate(
        self,
        params: Any,
        prompts: Sequence[Prompt],
        samples: int,
        sampling: Sampling,
        seed: int,
        *,
        limits: np.ndarray | None = None,
        resumed: Sequence[Rollout] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Rollout]:
        """Yields `samples` rollouts of each prompt, in any order, each as soon as it is finished.

        params: the trainer's float32 parameters. seed: contains the step; a token depends on (seed, prompt id, sample,
        position) and on nothing else. limits: int [prompts, samples], the most tokens of each response where that is
        less than `sampling.max_response_tokens`. resumed: rollouts that an unfinished call with the same arguments gave;
        those of this process's share are yielded first and not sampled again. progress: called between device calls.

        With several processes all of them call it with the same arguments; each decodes its share (`multihost.share` of
        the prompts) and yields that as it finishes. SIGINT and SIGTERM take
        effect between device calls, after what is finished has been yielded; within `preemption.preemptible` SIGTERM
        raises Preempted. Raises UserError for a prompt that cannot fit, before anything is compiled.
        """
        self._stop = multihost.Notice()
        began, traced = time.perf_counter(), self._programs.traced
        counters = Counters()
        queue = self._groups(prompts, samples, sampling, seed, limits)
        resumed, queue = _without_resumed(queue, resumed)
        total = sum(len(responses) for responses, _ in queue)
        cast = self._hand_over(params)
        jax.block_until_ready(cast)
        handed_over = time.perf_counter()
        pools = self._empty_pools()
        lanes = [
            Lane(
                self._programs, mesh, cast.pop(0), pools.pop(0), slots=self.config.slots, sampling=sampling,
                share=self.share_prefix, counters=counters,
            )
            for mesh in self._lanes
        ]  # fmt: skip
        finished = longest = 0
        self.metrics = self._measure(counters, time.perf_counter() - began, handed_over - began, 0)
        self._at_work = lanes
        try:
            yield from resumed
            while finished < total and not self._stop.is_set() and not preemption.requested():
                supervision.heartbeat()
                with DeferredSignals() as deferred:
                    deal(queue, lanes, self.config.slots)
                    busy = [lane for lane in lanes if lane.responses]
                    for lane in busy:
                        lane.start_round()
                    done = [response for lane in busy for response in lane.finish_round()]
                finished += len(done)
                longest = max([longest, *(s.produced for lane in lanes for s in lane.responses)])
                longest = max([longest, *(len(response.tokens) for response in done)])
                seconds = time.perf_counter() - began
                self.metrics = self._measure(counters, seconds, handed_over - began, self._programs.traced - traced)
                self.metrics |= {"finished": finished, "total": total, "longest": longest}
                for response in done:
                    rollout = response.rollout()
                    yield rollout
                if progress:
                    running = sum(len(lane.scheduler.running) for lane in lanes)
                    progress(
                        Progress(
                            finished, total, self.metrics["tokens_per_s"], self.metrics["occupancy"], running,
                            total - finished - running, counters.preempted, longest,
                        )
                    )  # fmt: skip
                deferred.deliver()
            if jax.process_count() > 1:
                if finished < total:
                    self._stop.set()  # one that stops does not leave the others to finish
                multihost.meet(self._while_others_sample)
                seconds = time.perf_counter() - began
                counters, finished, total, longest = _of_all(counters, finished, total, longest)
                self.metrics = self._measure(counters, seconds, handed_over - began, self._programs.traced - traced)
                self.metrics |= {"finished": finished, "total": total, "longest": longest}
        finally:
            self._at_work = []  # nor do weights and cache stay while the trainer works
            if self._programs.roomy:
                self._pools = [lane.pool for lane in lanes]
        preemption.check()

    def _while_others_sample(self) -> None:
        supervision.heartbeat()
        if preemption.requested() and not self._stop.is_set():
            self._stop.set()

    def state(self) -> dict[str, Any]:
        """For a report: the metrics of `generate`, and each lane's running and waiting sequences and free pages."""
        schedulers = [lane.scheduler for lane in self._at_work]
        lanes = [{"running": len(s.running), "waiting": s.waiting, "pages_free": s.pool.free} for s in schedulers]
        return self.metrics | {"lanes": lanes}

    def stop(self) -> None:
        """Makes the running `generate` end after the present device call, that of other processes within a second of
        it; safe to call from a signal handler."""
        self._stop.set()

    def _groups(self, prompts, samples, sampling, seed, limits) -> Queue:
        """This process's share, and the check that each sequence fits alone."""
        if limits is None:
            limits = np.full((len(prompts), samples), sampling.max_response_tokens)
        limits = np.minimum(limits, sampling.max_response_tokens)
        if limits.shape != (len(prompts), samples) or (limits <= len(sampling.prefix)).any():
            raise UserError(
                f"limits {limits.shape}: must be {(len(prompts), samples)}, and at least one token beyond the prefix"
            )
        longest = 0
        for prompt, most in zip(prompts, limits.max(axis=1), strict=True):
            if len(prompt.tokens) == 0:
                raise UserError(f"prompt {prompt.problem.id!r} has no tokens")
            longest = max(longest, len(prompt.tokens) + int(most) - 1)
        self._sequence_pages = max(self._sequence_pages, bucket(pages_for(longest, self.config.page_size)))
        if pages_for(longest, self.config.page_size) > self._pool_pages() - 1:
            raise UserError(
                f"prompt + response of {longest + 1} tokens take {pages_for(longest, self.config.page_size)} pages of "
                f"{self.config.page_size}, the pool has {self._pool_pages() - 1}: raise rollout.cache_gib "
                f"({self.config.cache_gib}) or lower rollout.max_response_tokens"
            )
        groups = deque()
        for i in multihost.share(range(len(prompts))):
            id_, tokens = prompts[i].problem.id, np.asarray(prompts[i].tokens, np.int32)
            responses = [Response(id_, k, sequence_key(seed, id_, k), tokens) for k in range(samples)]
            groups.append((responses, limits[i].tolist()))
        return groups

    def _page_bytes(self) -> int:
        return page_bytes(self.model, self.mesh, self.config)

    def _empty_pools(self) -> list[Pages]:
        """A pool for each lane."""
        pages, kept = self._pool_pages(), self._pools
        self._pools = []
        if kept and kept[0][0].shape[1] == pages and not any(x.is_deleted() for pool in kept for x in pool):
            return [self._programs.clear(pool) for pool in kept]
        return [new_pool(self.model, mesh, pages, self.config.page_size, self._cache_dtype) for mesh in self._lanes]

    def _pool_pages(self) -> int:
        return pool_pages(self.model, self.mesh, self.config, self._sequence_pages)

    def _check_fit(self) -> None:
        longest = pages_for(self.config.max_response_tokens, self.config.page_size)
        pages = pool_pages(self.model, self.mesh, self.config, longest)
        if longest > pages - 1:
            raise UserError(
                f"rollout.max_response_tokens={self.config.max_response_tokens} take {longest} pages of "
                f"{self._page_bytes() / 2**20:.3f} MiB, rollout.cache_gib={self.config.cache_gib} has {pages - 1}"
            )
        weights = weight_bytes(self.model, self.config.weights) / self.mesh.shape["tensor"]
        need, have = weights + pages * self._page_bytes(), _device_memory(self.mesh.local_devices[0])
        if need > have:
            raise UserError(
                f"sampling needs {weights / 2**30:.2f} GiB of weights + {pages} pages of "
                f"{self._page_bytes() / 2**20:.3f} MiB = {need / 2**30:.2f} GiB a device, which has "
                f"{have / 2**30:.2f}: set rollout.cache_gib, or lower rollout.slots={self.config.slots} or "
                f"rollout.max_response_tokens={self.config.max_response_tokens}"
            )

    def _measure(self, counters: Counters, seconds: float, hand_over_s: float, compilations: int) -> dict[str, float]:
        device_s = counters.prefill_s + counters.decode_s + counters.transfer_s
        return {
            "tokens": counters.sampled,
            "seconds": seconds,
            "tokens_per_s": counters.sampled / seconds,
            "occupancy": counters.sampled / max(counters.row_steps, 1),
            "slot_occupancy": counters.sampled / max(counters.slot_steps, 1),
            "preempted": counters.preempted,
            "prefilled_tokens": counters.prefilled,
            "device_calls": counters.calls,
            "compilations": compilations,
            "hand_over_s": hand_over_s,
            "prefill_s": counters.prefill_s,
            "decode_s": counters.decode_s,
            "transfer_s": counters.transfer_s,
            "host_s": seconds - hand_over_s - device_s,
        }


def deal(queue: deque[tuple[list[Response], list[int]]], lanes: Sequence[Lane], slots: int) -> None:
    """Submits groups, each to the lane with the fewest sequences, until `slots` of them wait there."""
    while queue and (lane := min(lanes, key=lambda lane: len(lane.responses))).scheduler.waiting < slots:
        lane.submit(*queue.popleft())


def sampler_model(model: ModelConfig, config: ConfigDict) -> ModelConfig:
    """The trainer's model as the sampler runs it. config: the section `rollout`, here and below."""
    if config.yarn_factor > 1:
        yarn = Yarn(config.yarn_factor, model.max_position_embeddings, config.yarn_attention_factor)
        model = model.replace(yarn=yarn)
    return model.replace(remat="none")


def page_bytes(model: ModelConfig, mesh: Mesh, config: ConfigDict) -> int:
    """Keys and values of one page, in all layers, on one device."""
    kv_heads = model.num_key_value_heads
    if kv_heads % mesh.shape["tensor"] == 0:
        kv_heads //= mesh.shape["tensor"]
    item = jnp.dtype(config.cache_dtype or model.dtype).itemsize
    return 2 * model.num_hidden_layers * config.page_size * kv_heads * model.head_dim * item


def pool_pages(model: ModelConfig, mesh: Mesh, config: ConfigDict, sequence_pages: int) -> int:
    """Pages of the pool: what `cache_gib` holds, or enough for a sequence of that many pages in every slot."""
    if config.cache_gib:
        return int(config.cache_gib * 2**30) // page_bytes(model, mesh, config)
    return config.slots * sequence_pages + 1


def _of_all(counters: Counters, finished: int, total: int, longest: int) -> tuple[Counters, int, int, int]:
    """The same of all processes together: counts are summed, seconds averaged."""
    everyone = multihost.gather([asdict(counters), finished, total, longest])
    sums = {name: sum(each[0][name] for each in everyone) for name in asdict(counters)}
    sums |= {name: value / len(everyone) for name, value in sums.items() if name.endswith("_s")}
    return Counters(**sums), sum(e[1] for e in everyone), sum(e[2] for e in everyone), max(e[3] for e in everyone)


def _without_resumed(queue: Queue, resumed: Sequence[Rollout]) -> tuple[list[Rollout], Queue]:
    """The resumed rollouts that are in the queue, and the queue without them."""
    mine = {(response.problem_id, response.sample) for responses, _ in queue for response in responses}
    found = {(r.problem_id, r.sample): r for r in resumed if (r.problem_id, r.sample) in mine}
    left: Queue = deque()
    for responses, limits in queue:
        pairs = [(r, n) for r, n in zip(responses, limits, strict=True) if (r.problem_id, r.sample) not in found]
        if pairs:
            left.append(tuple(map(list, zip(*pairs, strict=True))))
    return list(found.values()), left


def _device_memory(device: jax.Device) -> float:
    """Bytes of a device: what its allocator may use, or the host's memory for the CPU."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.platform == "cpu" else math.inf
