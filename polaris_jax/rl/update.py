"""The update: gradients of the policy loss over a batch of packed rows, and new parameters from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.errors import NonFiniteUpdates
from polaris_jax.models.presets import ModelConfig
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.optim.optimizer import apply_gradients
from polaris_jax.rl.flops import matmul_peak, update_flops
from polaris_jax.rl.gradients import divisor, learnt_slots, make_gradient, make_logprobs, put_rows
from polaris_jax.sharding.rules import replicated, rows_sharding
from polaris_jax.training.state import TrainState, stage_optimizer, state_shardings
from polaris_jax.types import PackedBatch

Update = Callable[[TrainState, list[PackedBatch], float], tuple[TrainState, dict[str, float]]]


def make_apply(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> Callable:
    """The jitted `apply(state, grads, totals, usable) -> (state, metrics)`: one optimizer update; state is donated.

    usable: bool, whether what the sampler recorded is finite.
    """
    optimizer, shardings = stage_optimizer(config), state_shardings(model, config, mesh)

    def apply(state: TrainState, grads: Any, totals: tuple[dict, dict], usable: jax.Array):
        sums, extremes = totals
        count = divisor(sums, config)
        scale = 1 / (count * state.opt_state.loss_scale)
        grads = jax.tree.map(lambda g: g * scale, grads)
        usable = usable & jnp.isfinite(sums["loss"])
        params, opt_state, metrics = apply_gradients(optimizer, state.params, grads, state.opt_state, usable)
        metrics |= {name: value / jnp.maximum(sums["tokens"], 1) for name, value in sums.items()}
        metrics |= extremes | {"loss": sums["loss"] / count, "skipped_in_a_row": opt_state.skipped_in_a_row}
        metrics |= {"tokens": sums["tokens"], "sequences": sums["sequences"]}
        return TrainState(state.step, params, opt_state), metrics

    return jax.jit(apply, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def make_update(model: ModelConfig, config: ConfigDict, mesh: Mesh, reference: Any = None) -> Update:
    """Builds `update(state, batches, temperature) -> (state, metrics)`; compiles nothing before its first call.

    The loss is `config.algorithm.loss` ("sft" for supervised fine-tuning). Losses and counts are summed over all rows
    of all batches and divided once, so that the gradient does not depend on how sequences were packed or grouped.
    With one optimizer update per batch the old log-probs are the current ones without their gradient, with several
    they are computed once, before the first.

    update: state is donated. batches: from `packing.pack`, on the host, the same on every process. temperature: of the
    distribution that the responses were sampled from; 1 for SFT. metrics: floats on the host; means over learnt
    tokens where the name does not say otherwise. An update whose loss or gradient, or a log-prob of the sampler is not
    finite changes only the counts in `state.opt_state`; see `check_finite`. reference: parameters that
    `config.algorithm.kl` pulls towards.
    """
    minibatches, epochs = config.updates.minibatches, config.updates.epochs
    gradient, apply = make_gradient(model, config, mesh), make_apply(model, config, mesh)
    alone = alone_in_rows(mesh, model.dtype)
    logprobs_of = make_logprobs(model, mesh)
    forward = jax.jit(lambda *args: logprobs_of(*args)[0], static_argnums=3, out_shardings=rows_sharding(mesh))

    def update(
        state: TrainState, batches: list[PackedBatch], temperature: float
    ) -> tuple[TrainState, dict[str, float]]:
        start = time.perf_counter()
        temperature = np.float32(temperature)
        # What the sampler could not tell is not to be learnt: such an update is skipped and counted.
        recorded = np.bool_(all(np.isfinite(batch.behaviour_logprobs).all() for batch in batches))
        if alone and any(np.abs(batch.segment_ids).max() > 1 for batch in batches):
            raise ValueError("this mesh's attention kernel needs `pack(..., alone=True)`: a row has several")
        rows = [put_rows(batch, mesh) for batch in batches]
        slots = [learnt_slots(batch, mesh) for batch in batches]
        olds = references = [None] * len(rows)
        if minibatches * epochs > 1:
            olds = [forward(state.params, batch, temperature, n) for batch, n in zip(rows, slots, strict=True)]
        if config.algorithm.kl:
            references = [forward(reference, batch, temperature, n) for batch, n in zip(rows, slots, strict=True)]
        history = []
        for _ in range(epochs):
            for part in np.array_split(np.arange(len(batches)), minibatches):
                part = [i for i in part if batches[i].mask.any()]
                if not part:
                    raise ValueError("a batch, or a mini-batch of it, has no token to learn from")
                *chosen, counts = ([values[i] for i in part] for values in (rows, olds, references, slots))
                grads, totals = gradient(state.params, *chosen, temperature, state.opt_state.loss_scale, counts)
                state, metrics = apply(state, grads, totals, recorded)
                history.append(metrics)
        state = state._replace(step=state.step + 1)
        metrics = _combine(jax.device_get(history))
        seconds = time.perf_counter() - start
        flops = epochs * update_flops(model, batches)
        metrics["tokens_per_s"] = epochs * sum(int(np.count_nonzero(batch.segment_ids)) for batch in batches) / seconds
        metrics["flops"] = flops
        metrics["peak_share"] = flops / seconds / (matmul_peak(model.dtype) * mesh.size)
        return state, metrics

    return update


def check_finite(skipped_in_a_row: float, config: ConfigDict) -> None:
    """Raises NonFiniteUpdates when `config.updates.max_skipped` updates in a row were skipped; save the state first."""
    if skipped_in_a_row >= config.updates.max_skipped:
        raise NonFiniteUpdates(
            f"the loss, a gradient or a log-prob of {skipped_in_a_row:.0f} updates in a row was not finite; none of "
            "them changed the parameters. Lower optimizer.learning_rate, or look at the batches in WORKDIR/not_finite "
            "with experiments/replay.py"
        )


def _combine(history: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """One value a metric: the last for counts in a row, the sum of skipped, the largest ratio, means of the others."""
    metrics = {}
    for name in history[0]:
        values = [float(metrics[name]) for metrics in history]
        if name == "skipped_in_a_row":
            metrics[name] = values[-1]
        elif name == "negative_ratio_min":
            metrics["ratio_min"] = -max(values)
        elif name.endswith("ratio_max"):
            metrics[name] = max(values)
        else:
            metrics[name] = sum(values) if name == "skipped" else float(np.mean(values))
    return metrics
