"""The rollout engine: prompts in, responses out, each as soon as it is finished (continuous batching, paged cache)."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.models.presets import ModelConfig, Yarn
from polaris_jax.rollout.handover import HandOver, lane_meshes
from polaris_jax.rollout.kv_pages import pages_for
from polaris_jax.rollout.lane import Counters, Lane, Programs, Response, bucket
from polaris_jax.rollout.sampling import Sampling, sequence_key
from polaris_jax.types import Prompt, Rollout


@dataclass(frozen=True)
class ScoredRollout(Rollout):
    """A rollout with the records that `Sampling` can ask for; None where it did not.

    untempered_logprobs: float32 [response], nats, at temperature 1 without top-k and top-p.
    alternative_ids, alternative_logprobs: int32 and float32 [response, n], the most probable tokens at each position.
    """

    untempered_logprobs: np.ndarray | None = None
    alternative_ids: np.ndarray | None = None
    alternative_logprobs: np.ndarray | None = None


@dataclass(frozen=True)
class Progress:
    """What `generate` reports between device calls. Counts are rollouts of this process; longest is in tokens."""

    finished: int
    total: int
    tokens_per_s: float
    occupancy: float
    running: int
    waiting: int
    preempted: int
    longest: int


class RolloutEngine:
    """Samples responses with the trainer's model.

    model: shape and compute dtype. mesh: the trainer's; every group of `tensor` devices decodes on its own. config: the
    section `rollout` of configs/base.py. Nothing is compiled or allocated until `generate`. Raises ValueError when the
    weights and the page pool cannot fit on a device.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, config: ConfigDict, *, share_prefix: bool = True):
        if config.yarn_factor > 1:
            yarn = Yarn(config.yarn_factor, model.max_position_embeddings, config.yarn_attention_factor)
            model = model.replace(yarn=yarn)
        self.model = model.replace(remat="none")
        self.mesh, self.config = mesh, config
        self.metrics: dict[str, float] = {}
        self._share = share_prefix
        self._lanes = lane_meshes(mesh)
        self._hand_over = HandOver(self.model, mesh, self._lanes)
        self._cache_dtype = config.cache_dtype or model.dtype
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._programs = Programs(self.model, config.tokens_per_call, gather_once=on_cpu)
        self._sequence_pages = 0  # of the longest sequence so far
        self._stop = threading.Event()
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
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Rollout]:
        """Yields `samples` rollouts of each prompt, in any order, each as soon as it is finished.

        params: the trainer's float32 parameters. seed: contains the step; a token depends on (seed, prompt id, sample,
        position) and on nothing else. limits: int [prompts, samples], the most tokens of each response where that is
        less than `sampling.max_response_tokens`. progress: called between device calls.

        With several processes all of them call it with the same arguments; each decodes its share and yields that as it
        finishes, then yields the others' rollouts. SIGINT and SIGTERM take effect between device calls, after what is
        finished has been yielded. Raises ValueError for a prompt that cannot fit, before anything is compiled.
        """
        self._stop.clear()
        began, traced = time.perf_counter(), self._programs.traced
        counters = Counters()
        queue = self._groups(prompts, samples, sampling, seed, limits)
        total = sum(len(responses) for responses, _ in queue)
        cast = self._hand_over(params)
        jax.block_until_ready(cast)
        handed_over = time.perf_counter()
        pages = self._pool_pages()
        lanes = [
            Lane(
                self._programs, mesh, cast.pop(0), pages=pages, page_size=self.config.page_size,
                slots=self._slots, dtype=self._cache_dtype, sampling=sampling, share=self._share, counters=counters,
            )
            for mesh in self._lanes
        ]  # fmt: skip
        finished = longest = 0
        mine: list[Rollout] = []
        while finished < total and not self._stop.is_set():
            with _Deferred() as deferred:
                for lane in lanes:
                    while queue and lane.scheduler.waiting < samples:
                        lane.submit(*queue.popleft())
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
                rollout = _rollout(prompts[response.prompt_index], response, sampling)
                if jax.process_count() > 1:
                    mine.append(rollout)
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
            yield from _others(mine)

    def stop(self) -> None:
        """Makes the running `generate` end after the present device call; safe to call from a signal handler."""
        self._stop.set()

    @property
    def _slots(self) -> int:
        return self.config.slots

    def _groups(self, prompts, samples, sampling, seed, limits) -> deque[tuple[list[Response], list[int]]]:
        """This process's share, and the check that each sequence fits alone."""
        if limits is None:
            limits = np.full((len(prompts), samples), sampling.max_response_tokens)
        limits = np.minimum(limits, sampling.max_response_tokens)
        if limits.shape != (len(prompts), samples) or (limits <= len(sampling.prefix)).any():
            raise ValueError(
                f"limits {limits.shape}: must be {(len(prompts), samples)}, and at least one token beyond the prefix"
            )
        longest = 0
        for prompt, most in zip(prompts, limits.max(axis=1), strict=True):
            if len(prompt.tokens) == 0:
                raise ValueError(f"prompt {prompt.id!r} has no tokens")
            longest = max(longest, len(prompt.tokens) + int(most) - 1)
        self._sequence_pages = max(self._sequence_pages, bucket(pages_for(longest, self.config.page_size)))
        if pages_for(longest, self.config.page_size) > self._pool_pages() - 1:
            raise ValueError(
                f"prompt + response of {longest + 1} tokens take {pages_for(longest, self.config.page_size)} pages of "
                f"{self.config.page_size}, the pool has {self._pool_pages() - 1}: raise rollout.cache_gib "
                f"({self.config.cache_gib}) or lower rollout.max_response_tokens"
            )
        return deque(
            (
                [Response(i, k, sequence_key(seed, prompts[i].id, k), np.asarray(prompts[i].tokens, np.int32))
                 for k in range(samples)],
                limits[i].tolist(),
            )
            for i in range(jax.process_index(), len(prompts), jax.process_count())
        )  # fmt: skip

    def _page_bytes(self) -> int:
        m = self.model
        kv_heads = m.num_key_value_heads
        if kv_heads % self.mesh.shape["tensor"] == 0:
            kv_heads //= self.mesh.shape["tensor"]
        item = jnp.dtype(self._cache_dtype).itemsize
        return 2 * m.num_hidden_layers * self.config.page_size * kv_heads * m.head_dim * item

    def _pool_pages(self) -> int:
        if self.config.cache_gib:
            return int(self.config.cache_gib * 2**30) // self._page_bytes()
        return self._slots * self._sequence_pages + 1

    def _check_fit(self) -> None:
        longest = pages_for(self.config.max_response_tokens, self.config.page_size)
        pages = self._pool_pages() if self.config.cache_gib else self._slots * longest + 1
        if longest > pages - 1:
            raise ValueError(
                f"rollout.max_response_tokens={self.config.max_response_tokens} take {longest} pages of "
                f"{self._page_bytes() / 2**20:.3f} MiB, rollout.cache_gib={self.config.cache_gib} has {pages - 1}"
            )
        weights = self.model.num_parameters * jnp.dtype(self.model.dtype).itemsize / self.mesh.shape["tensor"]
        need, have = weights + pages * self._page_bytes(), _device_memory(self.mesh.local_devices[0])
        if need > have:
            raise ValueError(
                f"sampling needs {weights / 2**30:.2f} GiB of weights + {pages} pages of {self._page_bytes() / 2**20:.3f} "
                f"MiB = {need / 2**30:.2f} GiB a device, which has {have / 2**30:.2f}: set rollout.cache_gib, or lower "
                f"rollout.slots={self._slots} or rollout.max_response_tokens={self.config.max_response_tokens}"
            )

    def _measure(self, counters: Counters, seconds: float, hand_over_s: float, compilations: int) -> dict[str, float]:
        device_s = counters.prefill_s + counters.decode_s + counters.transfer_s
        return {
            "tokens": counters.sampled,
            "seconds": seconds,
            "tokens_per_s": counters.sampled / seconds,
            "occupancy": counters.sampled / max(counters.row_steps, 1),
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


class _Deferred:
    """Holds SIGINT and SIGTERM back inside the block; `deliver` then gives them to the handlers of before."""

    def __init__(self):
        self._pending: list[int] = []

    def __enter__(self) -> _Deferred:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda n, _: self._pending.append(n))
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Raises the signals that came."""
        for number in dict.fromkeys(self._pending):
            signal.raise_signal(number)


def _rollout(prompt: Prompt, response: Response, sampling: Sampling) -> Rollout:
    drawn = jax.tree.map(lambda *parts: np.concatenate(parts), *response.parts)
    fields = (prompt.id, response.sample, response.prompt, drawn.tokens, drawn.logprobs, response.finish_reason)
    if not (sampling.untempered or sampling.alternatives):
        return Rollout(*fields)
    ids, logprobs = drawn.alternatives or (None, None)
    return ScoredRollout(*fields, drawn.untempered, ids, logprobs)


def _others(mine: list[Rollout]) -> list[Rollout]:
    """The rollouts of the other processes: every process calls it once, with its own."""
    import pickle

    data = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(data)] = data
    everyone = multihost_utils.process_allgather(padded)
    here = jax.process_index()
    return [
        rollout
        for process, size in enumerate(sizes.tolist())
        if process != here
        for rollout in pickle.loads(everyone[process, :size].tobytes())
    ]


def _device_memory(device: jax.Device) -> float:
    """Bytes of a device: what its allocator may use, or the host's memory for the CPU."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.platform == "cpu" else math.inf
