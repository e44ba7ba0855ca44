"""The checks, in one process on one device: `CHECKS[kind](bench, argument) -> (holds, values)`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.gpu_check import kernels
from polaris_jax.gpu_check.sizes import Size
from polaris_jax.rl.losses import k3
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs import profile as traces
from polaris_jax.runs.start import load_tokenizer, load_train_problems
from polaris_jax.sampler import Sampler, make_sampling, verifier_pool
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import put_rows
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.training.host import HostState
from polaris_jax.training.state import TrainState, init_state
from polaris_jax.training.step import Stage, train_step
from polaris_jax.training.update import make_logprobs, make_update
from polaris_jax.types import Problem, Prompt

PROMPT = 32  # tokens, where a prompt's length does not matter
REPEATS = 3  # timed after one to warm up
GAP_ROWS = 8  # sequences whose log-probs are compared
GAPS = {"bfloat16": 1e-2, "float16": 2e-3}  # the largest mean |difference of log-probs| that passes

Found = tuple[bool, dict[str, Any]]  # whether what must hold holds, and what was measured


class Bench:
    """What the checks share. earlier: values of the checks so far, by name. folder: where traces go.

    The parameters are made when the first check wants them, and kept: as they are until the first update wants the
    optimizer's state beside them.
    """

    def __init__(self, size: Size, folder: Path, earlier: Mapping[str, Mapping[str, Any]]):
        self.size, self.folder, self.earlier = size, folder, earlier
        self.mesh = make_mesh(size.config().mesh, jax.devices()[:1])
        self._params: Any = None
        self._state: TrainState | None = None

    def params(self) -> Any:
        """Float32 parameters, random."""
        if self._state is not None:
            return self._state.params
        if self._params is None:
            self._params = sharded_params(self.size.model(), self.mesh, 0)
        return self._params

    def train(self, step: Callable[[TrainState], tuple[TrainState, Any]]) -> Any:
        """Hands the state to a step, which donates it, keeps the one that it returns, and returns what else it does."""
        if self._state is None:
            self._state = init_state(self.size.model(), self.size.config(), self.mesh, self.params())
            self._params = None
        self._state, result = step(self._state)
        return result

    def forget_broken(self) -> None:
        """Parameters and state that a check which failed has donated are made again by the next."""
        if any(array.is_deleted() for array in jax.tree.leaves((self._params, self._state))):
            self._params = self._state = None

    def share(self, name: str, value: float, check: str, found: str) -> dict[str, float]:
        """Under `name` the value relative to what an earlier check found; nothing where it found nothing."""
        whole = self.earlier.get(check, {}).get(found)
        return {name: value / whole} if whole else {}


def ceilings(bench: Bench, _: str) -> Found:
    """What decoding and updates are to be compared with: copies and products of random numbers, several a program."""
    size, values = bench.size, {}
    repeat = partial(jax.lax.fori_loop, 0, size.repeated)  # a known count: no look by the host between two
    copies = jax.jit(lambda x: repeat(lambda _, x: x + 1, x), donate_argnums=0)
    # Two products a turn: one alone would be copied to where the next turn reads.
    products = jax.jit(lambda x, y: repeat(lambda _, x: (x @ y) @ y, x), donate_argnums=0)
    for dtype in dict.fromkeys(("bfloat16", "float16", size.model().dtype)):
        x, y = jax.random.normal(jax.random.key(0), (2, size.product, size.product))
        x, y = x.astype(dtype), (y / np.sqrt(size.product)).astype(dtype)  # the product is distributed as x is
        flops = 4 * size.product**3 * size.repeated
        values[f"{dtype}_tflops"] = flops / _fastest(partial(products, y=y), x) / 1e12
    x = jnp.ones(size.copied, jnp.float32)
    moved = 2 * x.nbytes * size.repeated
    return True, {"copy_gb_per_s": moved / _fastest(copies, x) / 1e9} | values


def kernel(bench: Bench, name: str) -> Found:
    """A kernel against the portable version in float32, with the model's heads."""
    return kernels.compare(name, bench.size.heads[:1], bench.size.kernel_tokens)


def heads(bench: Bench, name: str) -> Found:
    """The same with the heads of all other presets."""
    return kernels.compare(name, bench.size.heads[1:], bench.size.kernel_tokens)


def rollout(bench: Bench, argument: str) -> Found:
    """Decoded tokens/s of "CONTEXTxSLOTS", in the time that decoding calls and their results take: without prefill
    and compilation.

    read_gb_per_s: weights and cache that each step has to read, over its time; of_copy: relative to the copy speed.
    """
    context, slots = map(int, argument.split("x"))
    engine, generate = _decoder(bench, context, slots)
    for _ in range(2):  # the first compiles
        generate()
    model, found = engine.model, engine.metrics
    item = jnp.dtype(model.dtype).itemsize
    rate = found["tokens"] / (found["decode_s"] + found["transfer_s"])
    token_bytes = 2 * item * model.num_hidden_layers * model.num_key_value_heads * model.head_dim
    step_bytes = item * model.num_parameters + slots * (context - bench.size.decoded / 2) * token_bytes
    read = step_bytes * rate / slots / 1e9
    values = {"tokens_per_s": rate, "step_ms": 1e3 * slots / rate, "read_gb_per_s": read}
    values |= bench.share("of_copy", read, "ceilings", "copy_gb_per_s")
    return True, values | {"prefill_tokens_per_s": found["prefilled_tokens"] / max(found["prefill_s"], 1e-9)}


def gap(bench: Bench, dtype: str) -> Found:
    """How far the trainer's log-probs of sampled tokens are from the sampler's; the mean must be within `GAPS`.

    sampler_error, trainer_error: the mean distance of each from the trainer's in float32, which tells whose it is.
    """
    size = bench.size
    length, model = PROMPT + size.response, size.model(dtype)
    config = size.config({"rollout.slots": GAP_ROWS, "rollout.max_response_tokens": size.response})
    engine, sampling = RolloutEngine(model, bench.mesh, config.rollout), Sampling(max_response_tokens=size.response)
    sequences = [
        Sequence(np.r_[r.prompt_tokens, r.tokens], _mask(length), 1.0, np.r_[np.zeros(PROMPT, np.float32), r.logprobs])
        for r in engine.generate(bench.params(), _prompts(model.vocab_size, GAP_ROWS, PROMPT), 1, sampling, 0)
    ]
    config = size.config({"updates.row_lengths": (length - 1,), "updates.rows": GAP_ROWS})
    (rows,), _ = pack(sequences, config.updates)  # full rows: no two sequences in one
    found = _logprobs(bench, model, rows)
    with jax.default_matmul_precision("highest"):
        exact = _logprobs(bench, model.replace(dtype="float32"), rows)
    sampled, found, exact = (x[rows.mask > 0] for x in (rows.behaviour_logprobs, found, exact))
    gap_N = found - sampled
    values = {"mean_gap": np.abs(gap_N).mean(), "kl": np.mean(k3(gap_N)), "ratio_max": np.exp(np.abs(gap_N).max())}
    values |= {"sampler_error": np.abs(sampled - exact).mean(), "trainer_error": np.abs(found - exact).mean()}
    values = {name: float(value) for name, value in values.items()} | {"tokens": len(gap_N)}
    return values["mean_gap"] <= GAPS[dtype], values


def update(bench: Bench, length: str) -> Found:
    """Tokens/s of one update of full rows; of_product, of_peer: relative to the product speed, and to torch."""
    values, dtype = _timed_update(bench, int(length), bench.size.rows(int(length)), REPEATS), bench.size.model().dtype
    values |= bench.share("of_product", values["tflops"], "ceilings", f"{dtype}_tflops")
    return True, values | bench.share("of_peer", values["tokens_per_s"], f"peer/{length}", "tokens_per_s")


def apply(bench: Bench, _: str) -> Found:
    """Whether the kernel of int8 moments is right; the optimizer's part of an update, on the device's clock."""
    is_there = jax.default_backend() != "tpu"  # the kernel is that of GPUs, and interpreted on a CPU
    holds, values = kernels.compare_update() if is_there else (True, {})
    folder, learn = bench.folder / "apply", _updater(bench, bench.size.updates[0], 1)
    bench.train(learn)
    with jax.profiler.trace(folder):
        bench.train(learn)
    spent = [kernel.seconds for kernel in traces.kernels(folder) if kernel.module.startswith("jit_apply")]
    return holds and bool(spent), values | {"ms": 1e3 * sum(spent), "kernels": len(spent)}


def step(bench: Bench, _: str) -> Found:
    """One step of GRPO, after one on the same problems that compiles: rollout, verification, update."""
    size, model, sequences = bench.size, bench.size.model(), bench.size.prompts * bench.size.samples
    changes = {"rollout.prompts": size.prompts, "rollout.samples": size.samples, "rollout.slots": sequences}
    changes |= {"rollout.max_response_tokens": size.response, "updates.rows": sequences}
    config = size.config(changes)
    tokenizer, problems = load_tokenizer(config), load_train_problems(config)[: size.prompts]
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    row = max(len(prompt.tokens) for prompt in prompts) + size.response
    config = size.config(changes | {"updates.row_lengths": (row,)})
    host, engine = HostState(), RolloutEngine(model, bench.mesh, config.rollout)
    with verifier_pool(config) as verifier:
        sampler, sampling = Sampler(engine, tokenizer, verifier), make_sampling(config.rollout, ())
        stage = Stage(config, prompts, sampler, sampling, make_update(model, config, bench.mesh), None)

        def once(state: TrainState):
            state, *rest = train_step(state, host, stage, last=True)
            return state, rest

        for _ in range(2):
            host, _, metrics = bench.train(once)
    values = {f"{part}_s": metrics[f"seconds/{part}"] for part in ("rollout", "verdicts", "update", "step")}
    values |= {"tokens_per_s": metrics["tokens_per_s"], "gap": metrics["update/sampler_trainer_gap"]}
    values |= {"compilations": metrics["rollout/compilations"]}
    return float(metrics["update/skipped"]) == 0, {name: float(value) for name, value in values.items()}


def profile(bench: Bench, what: str) -> Found:
    """Device time by kernel of "decode" or "update", written to FOLDER/WHAT.txt."""
    if what == "decode":
        _, work = _decoder(bench, *bench.size.rollouts[0])
    else:
        work = partial(bench.train, _updater(bench, bench.size.updates[0], bench.size.rows(bench.size.updates[0])))
    work()
    began = time.perf_counter()
    with jax.profiler.trace(bench.folder / what):
        work()
    wall_s, found = time.perf_counter() - began, traces.kernels(bench.folder / what)
    busy_s = sum(kernel.seconds for kernel in found)
    lines = [f"{1e3 * k.seconds:10.3f} ms {k.seconds / busy_s:6.1%} {k.calls:7} x  {k.module}  {k.name}" for k in found]
    path = bench.folder / f"{what}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return bool(found), {"wall_s": wall_s, "device_s": busy_s, "kernels": len(found), "file": str(path)}


def longest(bench: Bench, length: str) -> Found:
    """An update of one row of that length."""
    return True, _timed_update(bench, int(length), 1, 1) | {"response_tokens": int(length) + 1 - PROMPT}


CHECKS = {
    check.__name__: check for check in (ceilings, kernel, heads, rollout, gap, update, apply, step, profile, longest)
}


def _decoder(bench: Bench, context: int, slots: int) -> tuple[RolloutEngine, Callable[[], None]]:
    size, model = bench.size, bench.size.model()
    config = size.config({"rollout.slots": slots, "rollout.max_response_tokens": size.decoded})
    prompts = _prompts(model.vocab_size, slots, context - size.decoded)
    sampling = Sampling(max_response_tokens=size.decoded)
    try:
        engine = RolloutEngine(model, bench.mesh, config.rollout)
    except UserError as error:  # the engine's own arithmetic says that it does not fit
        raise MemoryError(str(error)) from error

    def generate() -> None:
        list(engine.generate(bench.params(), prompts, 1, sampling, 0))

    return engine, generate


def _updater(bench: Bench, length: int, rows: int) -> Callable[[TrainState], tuple[TrainState, dict[str, float]]]:
    model, config = bench.size.model(), bench.size.config({"updates.row_lengths": (length,), "updates.rows": rows})
    rng, learn = np.random.default_rng(0), make_update(model, config, bench.mesh)
    guess = np.full(length + 1, -np.log(model.vocab_size), np.float32)
    sequences = [
        Sequence(rng.integers(0, model.vocab_size, length + 1, np.int32), _mask(length + 1), (-1.0) ** row, guess)
        for row in range(rows)
    ]
    batches, _ = pack(sequences, config.updates)  # full rows here, too
    return lambda state: learn(state, batches, 1.0)


def _timed_update(bench: Bench, length: int, rows: int, repeats: int) -> dict[str, float]:
    learn, times = _updater(bench, length, rows), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        metrics = bench.train(learn)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    return {"rows": rows, "tokens_per_s": rows * length / seconds, "tflops": metrics["flops"] / seconds / 1e12}


def _logprobs(bench: Bench, model: Any, rows: Any) -> np.ndarray:
    logprobs, _ = jax.jit(make_logprobs(model, bench.mesh))(bench.params(), put_rows(rows, bench.mesh), jnp.float32(1))
    return np.asarray(logprobs)


def _fastest(work: Callable, x: jax.Array) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        x = jax.block_until_ready(work(x))
        times.append(time.perf_counter() - began)
    return min(times)


def _mask(length: int) -> np.ndarray:
    return (np.arange(length) >= PROMPT).astype(np.float32)


def _prompts(vocabulary: int, count: int, length: int) -> list[Prompt]:
    tokens = np.random.default_rng(1).integers(0, vocabulary, (count, length), np.int32)
    return [Prompt(Problem(str(i), "", ()), row) for i, row in enumerate(tokens)]
