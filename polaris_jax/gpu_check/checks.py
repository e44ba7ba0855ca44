"""The checks, each run in a process of its own, on one device: `CHECKS[kind](size, argument) -> (holds, values)`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.gpu_check import kernels
from polaris_jax.gpu_check.sizes import SIZES, Size
from polaris_jax.ops.matmul import matmul_peak
from polaris_jax.rl.losses import k3
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs.start import load_tokenizer, load_train_problems
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import put_rows
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.training.host import HostState
from polaris_jax.training.state import init_state
from polaris_jax.training.step import Stage, train_step
from polaris_jax.training.update import make_logprobs, make_update
from polaris_jax.types import Problem, Prompt

PROMPT = 32  # tokens, where a prompt's length does not matter
REPEATS = 3  # timed after one to warm up
GAP_ROWS = 8  # sequences whose log-probs are compared

Found = tuple[bool, dict[str, Any]]  # whether what must hold holds, and what was measured


def machine(size: Size, _: str) -> Found:
    """Which device, and which JAX."""
    device = jax.devices()[0]
    values = {"platform": device.platform, "device": device.device_kind, "devices": len(jax.devices())}
    return True, values | {"jax": jax.__version__}


def speed(size: Size, _: str) -> Found:
    """What the update's share of peak, and the rollout's bytes, are to be compared with."""
    x = jnp.ones(2**24 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    jax.block_until_ready(copy(x))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(copy(x))
        times.append(time.perf_counter() - began)
    values = {f"{dtype}_tflops": matmul_peak(dtype) / 1e12 for dtype in ("bfloat16", "float16", "float32")}
    return True, values | {"copy_gb_per_s": 2 * x.nbytes / min(times) / 1e9}


def kernel(size: Size, name: str) -> Found:
    """A kernel against the portable version."""
    return kernels.compare(name, size.heads, size.kernel_tokens)


def gap(size: Size, dtype: str) -> Found:
    """How far the trainer's log-probs of sampled tokens are from the sampler's; the mean must be below 8 roundings."""
    length, mesh, model = PROMPT + size.response, _mesh(size), size.model(dtype)
    config = size.config({"rollout.slots": GAP_ROWS, "rollout.max_response_tokens": size.response})
    params = sharded_params(model, mesh, 0)
    engine = RolloutEngine(model, mesh, config.rollout)
    sampling = Sampling(max_response_tokens=size.response)
    sequences = [
        Sequence(np.r_[r.prompt_tokens, r.tokens], _mask(length), 1.0, np.r_[np.zeros(PROMPT, np.float32), r.logprobs])
        for r in engine.generate(params, _prompts(model.vocab_size, GAP_ROWS, PROMPT), 1, sampling, 0)
    ]
    config = size.config({"updates.row_lengths": (length - 1,), "updates.rows": GAP_ROWS})
    (rows,), _ = pack(sequences, config.updates)  # full rows: no two sequences in one
    logprobs, _ = jax.jit(make_logprobs(model, mesh))(params, put_rows(rows, mesh), jnp.float32(1))
    gap_N = (np.asarray(logprobs) - rows.behaviour_logprobs)[rows.mask > 0]
    values = {"mean_gap": np.abs(gap_N).mean(), "kl": np.mean(k3(gap_N)), "ratio_max": np.exp(np.abs(gap_N).max())}
    values = {name: float(value) for name, value in values.items()} | {"tokens": len(gap_N)}
    return values["mean_gap"] <= 8 * float(jnp.finfo(dtype).eps), values


def rollout(size: Size, argument: str) -> Found:
    """Decoded tokens/s of "CONTEXTxSLOTS", in the time that decoding calls and their results take: without prefill
    and compilation.

    read_gb_per_s: weights and cache that each step has to read, over its time.
    """
    context, slots = map(int, argument.split("x"))
    model, mesh = size.model(), _mesh(size)
    config = size.config({"rollout.slots": slots, "rollout.max_response_tokens": size.decoded})
    prompts = _prompts(model.vocab_size, slots, context - size.decoded)
    sampling = Sampling(max_response_tokens=size.decoded)
    try:
        engine = RolloutEngine(model, mesh, config.rollout)
        list(engine.generate(sharded_params(model, mesh, 0), prompts, 1, sampling, 0))
    except UserError as error:  # the engine's own arithmetic says that it does not fit
        raise MemoryError(str(error)) from error
    found, item = engine.metrics, jnp.dtype(model.dtype).itemsize
    rate = found["tokens"] / (found["decode_s"] + found["transfer_s"])
    token_bytes = 2 * item * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    step_bytes = item * model.num_parameters + slots * (context - size.decoded / 2) * token_bytes
    values = {"context": context, "slots": slots, "tokens_per_s": rate}
    return True, values | {"read_gb_per_s": step_bytes * rate / slots / 1e9}


def update(size: Size, length: str) -> Found:
    """Tokens/s and share of peak of one update of full rows, and the most memory it took."""
    return True, _update(size, int(length), max(size.update_tokens // int(length), 1), REPEATS)


def longest(size: Size, length: str) -> Found:
    """An update of one row of that length."""
    values = _update(size, int(length), 1, 1)
    return True, values | {"response_tokens": int(length) + 1 - PROMPT}


def step(size: Size, _: str) -> Found:
    """One step of GRPO, after one on the same problems that compiles: rollout, verification, update."""
    mesh, model, sequences = _mesh(size), size.model(), size.prompts * size.samples
    changes = {"rollout.prompts": size.prompts, "rollout.samples": size.samples, "rollout.slots": sequences}
    changes |= {"rollout.max_response_tokens": size.response, "updates.rows": sequences}
    config = size.config(changes)
    tokenizer, problems = load_tokenizer(config), load_train_problems(config)[: size.prompts]
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    row = max(len(prompt.tokens) for prompt in prompts) + size.response
    config = size.config(changes | {"updates.row_lengths": (row,)})
    state, host, engine = init_state(model, config, mesh), HostState(), RolloutEngine(model, mesh, config.rollout)
    with verifier_pool(config) as verifier:
        sampler, sampling = Sampler(engine, tokenizer, verifier), make_sampling(config.rollout, ())
        stage = Stage(config, prompts, sampler, sampling, make_update(model, config, mesh), None)
        for _ in range(2):
            state, host, _, metrics = train_step(state, host, stage, last=True)
    values = {f"{part}_s": metrics[f"seconds/{part}"] for part in ("rollout", "verdicts", "update", "step")}
    values |= {"tokens_per_s": metrics["tokens_per_s"], "gap": metrics["update/sampler_trainer_gap"]}
    values |= {"compilations": metrics["rollout/compilations"]}
    return float(metrics["update/skipped"]) == 0, {name: float(value) for name, value in values.items()} | _memory()


CHECKS = {
    "machine": machine, "speed": speed, "kernel": kernel, "gap": gap, "rollout": rollout, "update": update,
    "step": step, "longest": longest,
}  # fmt: skip


def attempt(check: str, size: str) -> dict[str, Any]:
    """What a check found: status ("ok", "failed" or "does not fit"), values, and a note.

    Errors other than too little memory are raised.
    """
    kind, _, argument = check.partition("/")
    try:
        holds, values = CHECKS[kind](SIZES[size], argument)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"status": "does not fit", "values": {}, "note": " ".join(str(error).split())[:300]}
    return {"status": "ok" if holds else "failed", "values": values, "note": ""}


def _update(size: Size, length: int, rows: int, repeats: int) -> dict[str, float]:
    model, mesh = size.model(), _mesh(size)
    config = size.config({"updates.row_lengths": (length,), "updates.rows": rows})
    state, learn = init_state(model, config, mesh), make_update(model, config, mesh)
    rng = np.random.default_rng(0)
    guess = np.full(length + 1, -np.log(model.vocab_size), np.float32)
    sequences = [
        Sequence(rng.integers(0, model.vocab_size, length + 1, np.int32), _mask(length + 1), (-1.0) ** row, guess)
        for row in range(rows)
    ]
    batches, _ = pack(sequences, config.updates)  # full rows here, too
    timed = []
    for _ in range(repeats + 1):
        state, metrics = learn(state, batches, 1.0)
        timed.append(metrics)
    rates = {name: statistics.median(metrics[name] for metrics in timed[1:]) for name in ("tokens_per_s", "peak_share")}
    return {"row_length": length, "rows": rows} | rates | _memory()


def _memory() -> dict[str, float]:
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak_gib": peak / 2**30} if peak else {}


def _mesh(size: Size) -> jax.sharding.Mesh:
    return make_mesh(size.config().mesh, jax.devices()[:1])


def _mask(length: int) -> np.ndarray:
    return (np.arange(length) >= PROMPT).astype(np.float32)


def _prompts(vocabulary: int, count: int, length: int) -> list[Prompt]:
    tokens = np.random.default_rng(1).integers(0, vocabulary, (count, length), np.int32)
    return [Prompt(Problem(str(i), "", ()), row) for i, row in enumerate(tokens)]
