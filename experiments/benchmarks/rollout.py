"""Useful tokens/s of the rollout engine and of transformers' `generate` in the same run: one JSON line a workload.

    python experiments/benchmarks/rollout.py --workloads=fixed,ragged,queue,long

Qwen3 shape, random weights, float32. Both are warm; each figure is the median of `--repeats` runs. The peer pads to the
longest prompt and decodes a static batch until its longest response is done; tokens beyond a response's length do not
count. `limit_share`: decode time that the machine's measured matmul and copy speed allow, over the decode time taken.
"""

from __future__ import annotations

import json
import time

import jax
import numpy as np
from absl import app, flags
from workloads import MODEL, PROMPT, response_lengths, transformers_model

from configs.base import get_config
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.types import Problem, Prompt

WORKLOADS = flags.DEFINE_list("workloads", ["fixed", "ragged", "queue", "long"], "Which ones.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each, after one to warm up.")
PEER = flags.DEFINE_boolean("peer", True, "Measure transformers' generate, too.")


def workload(name: str) -> tuple[np.ndarray, int]:
    """Response lengths int [prompts, samples], and slots."""
    known = {
        "fixed": (response_lengths(8, 8, 256, ragged=False), 64),
        "ragged": (response_lengths(8, 8, 512, ragged=True), 64),
        "queue": (response_lengths(32, 8, 512, ragged=True), 32),
        "long": (response_lengths(4, 4, 4096, ragged=True), 16),
    }
    if name not in known:
        raise app.UsageError(f"--workloads={name}: must be of {', '.join(known)}")
    return known[name]


def ours(limits: np.ndarray, slots: int) -> tuple[float, dict[str, float]]:
    """Median useful tokens/s, and the metrics of the last run."""
    config = get_config().rollout
    config.update(slots=slots, max_response_tokens=int(limits.max()))
    mesh = make_mesh({"data": -1})  # a replica on each device
    engine, params = RolloutEngine(MODEL, mesh, config), sharded_params(MODEL, mesh, 0)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 4096, (len(limits), PROMPT)).astype(np.int32)
    prompts = [Prompt(Problem(str(i), "", ()), row) for i, row in enumerate(tokens)]
    sampling = Sampling(max_response_tokens=int(limits.max()))
    rates = []
    for seed in range(REPEATS.value + 1):
        rollouts = list(engine.generate(params, prompts, limits.shape[1], sampling, seed, limits=limits))
        assert sum(len(r.tokens) for r in rollouts) == limits.sum()
        rates.append(engine.metrics["tokens_per_s"])
    return float(np.median(rates[1:])), engine.metrics


def peer(limits: np.ndarray, slots: int) -> float:
    """Median useful tokens/s of transformers, `slots` sequences a batch."""
    import torch

    model = transformers_model().eval()
    lengths = limits.reshape(-1)
    prompts = torch.randint(0, MODEL.vocab_size, (len(lengths), PROMPT))

    def run() -> float:
        began = time.perf_counter()
        for i in range(0, len(lengths), slots):
            batch = prompts[i : i + slots]
            longest = int(lengths[i : i + slots].max())
            with torch.no_grad():
                model.generate(
                    batch, attention_mask=torch.ones_like(batch), do_sample=True, top_k=0, max_new_tokens=longest,
                    min_new_tokens=longest,
                )  # fmt: skip
        return float(lengths.sum()) / (time.perf_counter() - began)

    model.generate(prompts[:slots], attention_mask=torch.ones_like(prompts[:slots]), do_sample=True, max_new_tokens=4)
    return float(np.median([run() for _ in range(REPEATS.value)]))


def machine() -> tuple[float, float]:
    """This machine's float32 matmul speed in FLOP/s and copy bandwidth in byte/s (read and write), through XLA."""
    a, x = np.ones((1024, 1024), np.float32), jax.device_put(np.ones(2**25, np.float32))
    a = jax.device_put(a)

    def best(function, *args) -> float:
        jax.block_until_ready(function(*args))
        times = []
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(function(*args))
            times.append(time.perf_counter() - began)
        return min(times)

    return 2 * 1024**3 / best(jax.jit(lambda a: a @ a), a), 2 * x.nbytes / best(jax.jit(lambda x: x + 1), x)


def least_seconds(limits: np.ndarray, slots: int, flops: float, bandwidth: float) -> float:
    """Decoding time at full speed: products, each cache read once, the weights once a full step."""
    m, tokens = MODEL, limits.sum()
    cache = 8 * m.num_hidden_layers * m.num_key_value_heads * m.head_dim * (limits * (PROMPT + limits / 2)).sum()
    weights = 4 * m.num_parameters * tokens / min(slots, limits.size)
    return float(2 * m.num_parameters * tokens / flops + (cache + weights) / bandwidth)


def main(_):
    flops, bandwidth = machine()
    for name in WORKLOADS.value:
        limits, slots = workload(name)
        rate, metrics = ours(limits, slots)
        line = dict(workload=name, ours=round(rate), tokens=int(limits.sum()), longest=int(limits.max()))
        if PEER.value:
            theirs = peer(limits, slots)
            line |= dict(peer=round(theirs), ratio=round(rate / theirs, 2))
        line |= dict(
            limit_share=round(least_seconds(limits, slots, flops, bandwidth) / metrics["decode_s"], 3),
            gflops=round(flops / 1e9),
            copy_gb_s=round(bandwidth / 1e9, 1),
            occupancy=round(metrics["occupancy"], 3),
            slot_occupancy=round(metrics["slot_occupancy"], 3),
            compilations=metrics["compilations"],
        )
        line |= {k: round(metrics[k], 3) for k in ("seconds", "prefill_s", "decode_s", "transfer_s", "host_s")}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
