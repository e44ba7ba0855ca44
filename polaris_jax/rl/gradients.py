"""Gradients of the policy loss, summed over packed rows and not yet divided by any count."""

from __future__ import annotations

import math
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
from polaris_jax.ops.attention import sharded_attention
from polaris_jax.ops.token_logprobs import token_logprobs
from polaris_jax.rl.losses import LOSSES, denominator, importance_cap, k3, segment_sums, takes_recorded, token_weights
from polaris_jax.sharding.rules import RULES, param_shardings, replicated, rows_sharding
from polaris_jax.types import PackedBatch

SLOTS_STEP = 1024  # see `learnt_slots`


def make_logprobs(model: ModelConfig, mesh: Mesh) -> Callable:
    """`logprobs(params, rows, temperature, slots=None) -> (logprobs, entropy)`, float32 [R, T].

    To be jitted or differentiated. slots, an int from `learnt_slots`: values count only where `rows.mask` is 1.
    """
    transformer = Transformer(model, sharded_attention(mesh))

    def logprobs(params: Any, rows: PackedBatch, temperature: jax.Array, slots: int | None = None):
        with mesh, nn.logical_axis_rules(RULES):
            hidden, _ = transformer.apply({"params": params}, rows.tokens, rows.positions, rows.segment_ids)
        unembedding_VD, learnt = unembedding(params, model), dict(mask_BT=rows.mask, slots=slots)
        return token_logprobs(hidden, unembedding_VD, rows.targets, temperature, mesh=mesh, **learnt)

    return logprobs


def make_accumulate(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> Callable:
    """The jitted `accumulate(grads, params, rows, old, reference, temperature, loss_scale, slots) -> (grads, totals)`.

    Adds the gradient of one more `PackedBatch` to grads, which are donated; totals are those of that batch alone.
    Arguments and results are those of `make_gradient`; slots is static.
    """
    logprobs_of = make_logprobs(model, mesh)
    settings = dict(algorithm=config.algorithm, recorded=takes_recorded(config), cap=importance_cap(config))

    def accumulate(grads, params, rows, old, reference, temperature, loss_scale, slots=None):
        loss = partial(_row_loss, logprobs_of=partial(logprobs_of, slots=slots), **settings)
        new, totals = jax.grad(loss, has_aux=True)(params, rows, old, reference, temperature, loss_scale)
        return jax.tree.map(jnp.add, grads, new), totals

    shardings = param_shardings(model, mesh), replicated(mesh)
    return jax.jit(accumulate, donate_argnums=0, static_argnums=7, out_shardings=shardings)


def make_gradient(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> Callable:
    """Builds `gradient(params, rows, olds, references, temperature, loss_scale, slots=None) -> (grads, totals)`.

    rows: list of `PackedBatch` on the mesh. olds, references: for each its old and its reference log-probs, float32
    [R, T]; None for an old means the current ones, for a reference that there is no KL term. loss_scale: multiplies
    the loss before the backward pass. slots: for each of rows its `learnt_slots`; None: all slots. grads: of the summed
    loss, float32, sharded as the parameters. totals: (sums, extremes), dicts of scalars; `divisor` tells what to divide
    grads and the summed loss by.
    """
    accumulate, merge = make_accumulate(model, config, mesh), jax.jit(_merge, out_shardings=replicated(mesh))
    zeros = jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=param_shardings(model, mesh))

    # A moment after its results are ready the CPU client frees the memory that a program needed.
    pause = 5e-4 if mesh.devices.flat[0].platform == "cpu" else 0.0

    def gradient(params, rows, olds, references, temperature, loss_scale, slots=None):
        grads, totals = zeros(params), None
        slots = slots or [None] * len(rows)
        for batch, old, reference, count in zip(rows, olds, references, slots, strict=True):
            grads, new = accumulate(grads, params, batch, old, reference, temperature, loss_scale, count)
            totals = new if totals is None else merge(totals, new)
            jax.block_until_ready((grads, totals))  # else the CPU holds the activations of several batches
            time.sleep(pause)
        return grads, totals

    return gradient


def _merge(a: tuple[dict, dict], b: tuple[dict, dict]) -> tuple[dict, dict]:
    """(sums, extremes) of two batches together."""
    return jax.tree.map(jnp.add, a[0], b[0]), jax.tree.map(jnp.maximum, a[1], b[1])


def _row_loss(params, rows, old, reference, temperature, loss_scale, *, logprobs_of, algorithm, recorded, cap):
    logprobs, entropy = logprobs_of(params, rows, temperature)
    current = jax.lax.stop_gradient(logprobs)
    learnt, on_policy = rows.mask > 0, rows.segment_ids > 0
    if recorded:
        old = rows.behaviour_logprobs
    old = jnp.where(on_policy, current if old is None else old, rows.behaviour_logprobs)
    loss, below, above = LOSSES[algorithm.loss](logprobs, old, rows, algorithm)
    weights = token_weights(rows, algorithm.aggregation)
    if cap:
        weights *= jnp.minimum(jnp.exp(old - rows.behaviour_logprobs), cap)
    sums, extremes = {}, {}
    if algorithm.kl:
        loss += algorithm.kl * k3(reference - logprobs)
        sums["kl_reference"] = jnp.sum(rows.mask * k3(reference - current))
    total = jnp.sum(jnp.where(learnt, weights * loss, 0))
    sums |= {
        "tokens": jnp.sum(rows.mask),
        "sequences": jnp.sum(rows.mask / jnp.maximum(segment_sums(rows.mask, rows.segment_ids), 1)),
        "loss": total,
        "entropy": jnp.sum(rows.mask * entropy),
    }
    if algorithm.loss != "sft":
        gap = jnp.where(learnt & on_policy, current - rows.behaviour_logprobs, 0)
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
    return total * loss_scale, (sums, extremes)


def divisor(sums: dict[str, jax.Array], config: ConfigDict) -> jax.Array:
    """What the summed loss and its gradient are divided by, once, for all rows of all hosts."""
    tokens, sequences = sums["tokens"], sums["sequences"]
    count = denominator(config.algorithm.aggregation, tokens, sequences, config.rollout.max_response_tokens)
    return jnp.maximum(count, 1)


def put_rows(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """The batch on the mesh, with rows of padding where data x fsdp does not divide their number.

    Every process holds all of the batch on the host and puts its own share.
    """
    sharding = rows_sharding(mesh)
    missing = -len(batch.tokens) % (mesh.shape["data"] * mesh.shape["fsdp"])
    if missing:
        batch = PackedBatch(*(np.pad(x, ((0, missing), (0, 0))) for x in batch))
    if sharding.is_fully_addressable:
        return jax.device_put(batch, PackedBatch(*[sharding] * len(batch)))
    return PackedBatch(*(jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]) for x in batch))


def learnt_slots(batch: PackedBatch, mesh: Mesh) -> int:
    """Slots of each device that hold all its learnt tokens when `put_rows` has put the batch: only they are unembedded.

    A multiple of `SLOTS_STEP` or of a sixteenth of the device's slots, whichever is more, so that few programs are
    compiled; the same on every process.
    """
    groups, parts = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["context"]
    learnt = np.pad(batch.mask > 0, ((0, -len(batch.mask) % groups), (0, 0)))
    most = learnt.reshape(groups, -1, parts, learnt.shape[1] // parts).sum(axis=(1, 3)).max()
    slots = learnt.size // (groups * parts)
    step = max(SLOTS_STEP, math.ceil(slots / 16))
    return min(slots, step * max(1, math.ceil(most / step)))
