"""The update: packed rows to gradients of the policy loss, and gradients to new parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import Transformer, unembedding
from polaris_jax.ops.token_logprobs import token_logprobs
from polaris_jax.rl.losses import LOSSES, denominator, k3, segment_sums, token_weights
from polaris_jax.sharding.rules import RULES, replicated, rows_sharding
from polaris_jax.training.optimizer import adamw
from polaris_jax.training.state import TrainState, state_shardings
from polaris_jax.types import PackedBatch

Update = Callable[[TrainState, list[PackedBatch], float], tuple[TrainState, dict[str, float]]]


def make_update(model: ModelConfig, config: ConfigDict, mesh: Mesh, reference: Any = None) -> Update:
    """Builds `update(state, batches, temperature) -> (state, metrics)`; compiles nothing before its first call.

    The loss is `config.algorithm.loss` ("sft" for supervised fine-tuning). Losses and counts are summed over all rows
    of all batches and divided once, so that the gradient does not depend on how sequences were packed or grouped.
    With one optimizer update per batch the old log-probs are the current ones without their gradient, with several
    they are computed once, before the first.

    update: state is donated. batches: from `packing.pack`, on the host, the same on every process. temperature: of the
    distribution that the responses were sampled from; 1 for SFT. metrics: floats on the host. reference: parameters
    that `config.algorithm.kl` pulls towards.
    """
    algorithm, minibatches = config.algorithm, config.updates.minibatches
    several = minibatches * config.updates.epochs > 1
    total = config.training.steps * minibatches * config.updates.epochs
    put = partial(_put, sharding=rows_sharding(mesh))
    shardings = state_shardings(model, config, mesh)
    scalar = replicated(mesh)

    def logprobs_of(params, rows, temperature):
        with mesh, nn.logical_axis_rules(RULES):
            hidden, _ = Transformer(model).apply({"params": params}, rows.tokens, rows.positions, rows.segment_ids)
        return token_logprobs(hidden, unembedding(params, model), rows.targets, temperature, mesh=mesh)

    def row_loss(params, rows, old, reference_logprobs, temperature, loss_scale):
        logprobs, entropy = logprobs_of(params, rows, temperature)
        sums, extremes = {}, {}
        current = jax.lax.stop_gradient(logprobs)
        old = current if old is None else old
        old = jnp.where(rows.segment_ids < 0, rows.behaviour_logprobs, old)
        if algorithm.old_logprobs == "recorded":
            old = rows.behaviour_logprobs
        loss, below, above = LOSSES[algorithm.loss](logprobs, old, rows, algorithm)
        weights = token_weights(rows, algorithm.aggregation)
        if algorithm.importance_cap:
            weights *= jnp.minimum(jnp.exp(old - rows.behaviour_logprobs), algorithm.importance_cap)
        if algorithm.kl:
            sums["kl_reference"] = jnp.sum(rows.mask * k3(reference_logprobs - current))
            loss += algorithm.kl * k3(reference_logprobs - logprobs)
        total_loss = jnp.sum(jnp.where(rows.mask > 0, weights * loss, 0))
        sums |= {
            "tokens": jnp.sum(rows.mask),
            "sequences": jnp.sum(rows.mask / jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)),
            "loss": total_loss,
            "entropy": jnp.sum(rows.mask * entropy),
        }
        if algorithm.loss != "sft":
            learnt = rows.mask > 0
            gap = jnp.where(learnt & (rows.segment_ids > 0), current - rows.behaviour_logprobs, 0)
            ratio = jnp.exp(jnp.where(learnt, current - old, 0))
            sums |= {
                "clip_below": jnp.sum(rows.mask * below),
                "clip_above": jnp.sum(rows.mask * above),
                "sampler_trainer_gap": jnp.sum(jnp.abs(gap)),
                "sampler_trainer_kl": jnp.sum(k3(gap)),
            }
            extremes = {
                "ratio_max": jnp.max(ratio),
                "negative_ratio_min": -jnp.min(ratio),
                "sampler_trainer_ratio_max": jnp.exp(jnp.max(jnp.abs(gap))),
            }
        return total_loss * loss_scale, (sums, extremes)

    def zeros(params):
        return jax.tree.map(jnp.zeros_like, params)

    def accumulate(grads, totals, params, rows, old, reference_logprobs, temperature, loss_scale):
        new, stats = jax.grad(row_loss, has_aux=True)(params, rows, old, reference_logprobs, temperature, loss_scale)
        grads = jax.tree.map(jnp.add, grads, new)
        if totals is not None:
            stats = jax.tree.map(jnp.add, totals[0], stats[0]), jax.tree.map(jnp.maximum, totals[1], stats[1])
        return grads, stats

    def apply(state, grads, totals):
        sums, extremes = totals
        divisor = denominator(
            algorithm.aggregation, sums["tokens"], sums["sequences"], config.rollout.max_response_tokens
        )
        divisor = jnp.maximum(divisor, 1)
        scale = jnp.where(jnp.isfinite(sums["loss"]), 1 / (divisor * state.opt_state.loss_scale), jnp.nan)
        grads = jax.tree.map(lambda g: g * scale, grads)
        params, opt_state, metrics = adamw(state.params, grads, state.opt_state, config.optimizer, total)
        tokens = jnp.maximum(sums["tokens"], 1)
        metrics |= {name: value / tokens for name, value in sums.items() if name not in ("loss", "tokens", "sequences")}
        metrics |= extremes
        metrics |= {"loss": sums["loss"] / divisor, "skipped_in_a_row": opt_state.skipped_in_a_row}
        return TrainState(state.step, params, opt_state), metrics

    zeros = jax.jit(zeros, out_shardings=shardings.params)
    accumulate = jax.jit(accumulate, donate_argnums=(0, 1), out_shardings=(shardings.params, scalar))
    apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, scalar))
    forward = jax.jit(lambda *args: logprobs_of(*args)[0], out_shardings=rows_sharding(mesh))

    def update(
        state: TrainState, batches: list[PackedBatch], temperature: float
    ) -> tuple[TrainState, dict[str, float]]:
        start = time.perf_counter()
        temperature = jnp.float32(temperature)
        parts = np.array_split(np.arange(len(batches)), minibatches)
        rows = [put(batch) for batch in batches]
        olds = [forward(state.params, r, temperature) if several else None for r in rows]
        references = [forward(reference, r, temperature) if algorithm.kl else None for r in rows]
        history = []
        for _ in range(config.updates.epochs):
            for part in parts:
                grads, totals = zeros(state.params), None
                for i in part:
                    if batches[i].mask.any():
                        scale = state.opt_state.loss_scale
                        grads, totals = accumulate(
                            grads, totals, state.params, rows[i], olds[i], references[i], temperature, scale
                        )
                state, metrics = apply(state, grads, totals)
                history.append(metrics)
        state = state._replace(step=state.step + 1)
        history = jax.device_get(history)
        metrics = {name: float(np.mean([m[name] for m in history])) for name in history[0]}
        metrics |= {name: float(max(m[name] for m in history)) for name in metrics if "ratio" in name}
        if "negative_ratio_min" in metrics:
            metrics["ratio_min"] = -metrics.pop("negative_ratio_min")
        seconds = time.perf_counter() - start
        used = sum(int((batch.segment_ids != 0).sum()) for batch in batches)
        metrics |= {"tokens_per_s": used / seconds}
        return state, metrics

    return update


def _put(batch: PackedBatch, sharding) -> PackedBatch:
    """The batch on the mesh; every process holds all of it and puts its own share."""
    if sharding.is_fully_addressable:
        return jax.device_put(batch, PackedBatch(*[sharding] * len(batch)))
    return PackedBatch(*(jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]) for x in batch))
