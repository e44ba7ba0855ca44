"""The rollout engine: prompts in, responses out, each as soon as it is finished (continuous batching, paged cache)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax import supervision
from polaris_jax.errors import UserError
from polaris_jax.models.presets import ModelConfig, Yarn
from polaris_jax.models.quantise import weight_bytes
from polaris_jax.rollout.kv_pages import PagePool, pages_for
from polaris_jax.rollout.metrics import GenerateCall
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.rollout.pools import new_pool, page_bytes, pool_pages
from polaris_jax.rollout.programs import Pages
from polaris_jax.rollout.records import Response
from polaris_jax.rollout.replica import Programs, Queue, Replica, bucket, deal, finish_first
from polaris_jax.rollout.sampling import Sampling, sequence_key
from polaris_jax.rollout.scheduler import Scheduler
from polaris_jax.rollout.weight_sync import WeightSync, replica_meshes
from polaris_jax.sharding import multihost
from polaris_jax.supervision import DeferredSignals, preemption
from polaris_jax.types import Prompt, Rollout


class RolloutEngine:
    """Samples responses with the trainer's model.

    model: shape and compute dtype. mesh: the trainer's, or one of other devices; every group of `tensor` devices
    decodes on its own, as one replica. config: the section `rollout` of configs/base.py. limit_key: the key of the
    config that its `max_response_tokens` comes from. metrics: of the present or last `generate`, new after each device
    call. Nothing is compiled or allocated until `generate`. Raises UserError when the weights and the page pool cannot
    fit on a device.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        config: ConfigDict,
        *,
        share_prefix: bool = True,
        limit_key: str = "rollout.max_response_tokens",
    ):
        self.model, self._limit_key = sampler_model(model, config), limit_key
        self.mesh, self.config = mesh, config
        self.metrics: dict[str, float] = {}
        self.share_prefix = share_prefix
        self._meshes = replica_meshes(mesh)
        self._platform = PLATFORMS[mesh.devices.flat[0].platform]
        self._programs = Programs(self.model, config.tokens_per_call, self._platform)
        counts = self._programs.compilations
        self._weight_sync = WeightSync(self.model, mesh, self._meshes, config.weights, counts)
        self._sequence_pages = 0  # of the longest sequence so far
        self._stop = multihost.SharedFlag()
        self._replicas: list[Replica] = []  # at work
        self._pools: list[Pages] = []  # what the platform keeps of the last call
        self.check_fit()

    def check_fit(self, prompt_tokens: int = 0, held_bytes: float = 0.0) -> None:
        """Raises UserError where weights and page pool cannot fit on a device, or the longest sequence not in the pool.

        prompt_tokens: of the longest prompt. held_bytes: what else lies on each device meanwhile, such as the trainer's
        state.
        """
        c, key = self.config, self._limit_key
        longest = pages_for(prompt_tokens + c.max_response_tokens, c.page_size)
        pages = pool_pages(self.model, self.mesh, c, longest)
        if longest > pages - 1:
            prompt = f"a prompt of {prompt_tokens} and " if prompt_tokens else ""
            raise UserError(
                f"{prompt}{key}={c.max_response_tokens} take {longest} pages of {self._page_bytes() / 2**20:.3f} MiB, "
                f"rollout.cache_gib={c.cache_gib} has {pages - 1}: raise it, or lower {key}"
            )
        shared = held_bytes > 0 and self._platform.shares(self.model, self.mesh, c.weights)  # with the trainer
        weights = 0.0 if shared else weight_bytes(self.model, c.weights) / self.mesh.shape["tensor"]
        need, have = weights + pages * self._page_bytes(), self._platform.memory(self.mesh.local_devices[0])
        if need + held_bytes > have:
            held = f" beside {held_bytes / 2**30:.2f} GiB of the trainer's state" if held_bytes else ""
            raise UserError(
                f"sampling needs {weights / 2**30:.2f} GiB of weights + {pages} pages of "
                f"{self._page_bytes() / 2**20:.3f} MiB = {need / 2**30:.2f} GiB a device{held}, which has "
                f"{have / 2**30:.2f}: set rollout.cache_gib, or lower rollout.slots={c.slots} or "
                f"{key}={c.max_response_tokens}"
            )

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
    ) -> Iterator[Rollout]:
        """Yields `samples` rollouts of each of this process's prompts, in any order, each as soon as it is finished.

        params: the trainer's float32 parameters. seed: contains the step; a token depends on (seed, problem id, sample,
        position) and on nothing else. limits: int [prompts, samples], the most tokens of each response where that is
        less than `sampling.max_response_tokens`. resumed: rollouts that an unfinished call with the same arguments
        gave; those of this process's share are yielded first and not sampled again.

        With several processes all of them call it with the same arguments; each decodes its share (`multihost.share` of
        the prompts), yields that, and waits at its end for the others. SIGINT and SIGTERM take effect between device
        calls, after what is finished has been yielded; within `preemption.preemptible` SIGTERM raises Preempted. Raises
        UserError for a prompt that cannot fit, before anything is compiled.
        """
        # What there is to do: this process's groups, without what was sampled before an interruption.
        self._stop = multihost.SharedFlag()
        call = GenerateCall(began=time.perf_counter(), traced=self._programs.compilations.count)
        resumed, queue = _without_resumed(self._groups(prompts, samples, sampling, seed, limits, call), resumed)
        call.total = sum(len(responses) for responses, _ in queue)

        # Weight sync: the trainer's parameters in the sampler's dtype on each replica, each with an empty page pool.
        weights = self._weight_sync(params)
        jax.block_until_ready(weights)
        call.weight_sync_s = time.perf_counter() - call.began
        replicas = self._replicas = self._start_replicas(weights, sampling, call)
        self.metrics = call.metrics(self._programs.compilations.count)
        try:
            yield from resumed
            deal(queue, replicas)
            ending = False
            while call.finished < call.total and not ending:
                supervision.heartbeat()
                # Each replica goes its own pace: whichever is idle begins a round, and what the first to be done has
                # sampled is booked while the others compute. Before the call may end, all finish their rounds.
                with DeferredSignals() as deferred:
                    if not self._is_to_end():
                        for replica in replicas:
                            if replica.responses and not replica.at_work:
                                replica.start_round()
                    done = finish_first(replicas)
                    ending = self._is_to_end()
                    while (ending or deferred.pending) and any(replica.at_work for replica in replicas):
                        done += finish_first(replicas)

                # What is finished is counted and given out, and only then an interrupt may end the call.
                call.count(done, [scheduled for replica in replicas for scheduled in replica.scheduler.running])
                self.metrics = call.metrics(self._programs.compilations.count)
                for response in done:
                    yield response.rollout()
                deferred.deliver()

            # The other processes: nobody goes on to the update before all are through, and metrics are of all together.
            if jax.process_count() > 1:
                if call.finished < call.total:
                    self._stop.set()  # one that stops does not leave the others to finish
                multihost.wait_for_all(self._while_others_sample)
                self.metrics = call.of_all().metrics(self._programs.compilations.count)
        finally:
            # The device's memory is the trainer's again: weights and cache go, but for pools that the platform keeps.
            self._pools = self._platform.keep_pools([replica.pool for replica in replicas])
            self._replicas = []
        preemption.check()

    def _is_to_end(self) -> bool:
        return self._stop.is_set() or preemption.requested()

    def _while_others_sample(self) -> None:
        supervision.heartbeat()
        if preemption.requested() and not self._stop.is_set():
            self._stop.set()

    def state(self) -> dict[str, Any]:
        """What a report needs: the metrics of `generate`, and each replica's running and waiting sequences and free
        pages."""
        schedulers = [replica.scheduler for replica in self._replicas]
        replicas = [{"running": len(s.running), "waiting": s.waiting, "pages_free": s.pool.free} for s in schedulers]
        return self.metrics | {"replicas": replicas}

    def stop(self) -> None:
        """Makes the running `generate` end after the present device call, that of other processes within a second of
        it; safe to call from a signal handler."""
        self._stop.set()

    def _start_replicas(self, weights: list[Any], sampling: Sampling, call: GenerateCall) -> list[Replica]:
        pages, page_size, kept, self._pools = self._pool_pages(), self.config.page_size, self._pools, []
        dtype = self.config.cache_dtype or self.model.dtype
        pools = self._platform.reuse_pools(kept, pages)
        pools = pools or [new_pool(self.model, mesh, pages, page_size, dtype) for mesh in self._meshes]
        replicas = []
        for mesh, params, pool in zip(self._meshes, weights, pools, strict=True):
            rules = page_size, self.config.slots, self.config.tokens_per_call
            scheduler = Scheduler(PagePool(pages), *rules, share=self.share_prefix)
            replicas.append(Replica(self._programs, mesh, params, pool, scheduler, sampling, call))
        return replicas

    def _groups(self, prompts, samples, sampling, seed, limits, call) -> Queue:
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
        call.sequence_pages = bucket(pages_for(longest, self.config.page_size))
        self._sequence_pages = max(self._sequence_pages, call.sequence_pages)
        if pages_for(longest, self.config.page_size) > self._pool_pages() - 1:
            raise UserError(
                f"prompt + response of {longest + 1} tokens take {pages_for(longest, self.config.page_size)} pages of "
                f"{self.config.page_size}, the pool has {self._pool_pages() - 1}: raise rollout.cache_gib "
                f"({self.config.cache_gib}) or lower {self._limit_key}"
            )
        groups = deque()
        for i in multihost.share(range(len(prompts))):
            id_, tokens = prompts[i].problem.id, np.asarray(prompts[i].tokens, np.int32)
            responses = [Response(id_, k, sequence_key(seed, id_, k), tokens) for k in range(samples)]
            groups.append((responses, limits[i].tolist()))
        return groups

    def _page_bytes(self) -> int:
        return page_bytes(self.model, self.mesh, self.config)

    def _pool_pages(self) -> int:
        return pool_pages(self.model, self.mesh, self.config, self._sequence_pages)


def extended(model: ModelConfig, config: ConfigDict) -> ModelConfig:
    """The model with the context extension that `config`, the section `rollout`, asks for; else as it is.

    A model that is extended already keeps the length that it was trained with, where `yarn_original` sets no other.
    """
    if config.yarn_factor <= 1:
        return model
    trained = model.yarn.original_max_position_embeddings if model.yarn else model.max_position_embeddings
    yarn = Yarn(config.yarn_factor, config.yarn_original or trained, config.yarn_attention_factor)
    return model.replace(yarn=yarn)


def sampler_model(model: ModelConfig, config: ConfigDict) -> ModelConfig:
    """The trainer's model as the sampler runs it. config: the section `rollout`."""
    return extended(model, config).replace(remat="none")


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
