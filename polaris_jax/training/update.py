"""The update: gradients of the policy loss over a batch of packed rows, and new parameters from them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from polaris_jax.compilations import Compilations
from polaris_jax.errors import NonFiniteUpdates
from polaris_jax.models.flops import update_flops
from polaris_jax.models.lora import join, split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import Transformer, unembedding, unrolled
from polaris_jax.ops.attention import alone_in_rows, sharded_attention
from polaris_jax.ops.gradient_sums import begin, use
from polaris_jax.ops.matmul import matmul_peak
from polaris_jax.ops.token_logprobs import token_logprobs
from polaris_jax.optim import offload
from polaris_jax.optim.optimizer import apply_gradients
from polaris_jax.rl.losses import batch_loss, divisor, merge_totals
from polaris_jax.sharding.rows import put_rows
from polaris_jax.sharding.rules import RULES, param_shardings, replicated, rows_sharding
from polaris_jax.supervision import heartbeat
from polaris_jax.training.platform import AFTER_BATCH, apply_kernel, apply_piece
from polaris_jax.training.state import TrainState, moved_moments, stage_optimizer, state_shardings
from polaris_jax.types import PackedBatch

Metrics = dict[str, float]
Update = Callable[..., tuple[TrainState, Metrics]]


def make_update(
    model: ModelConfig, config: ConfigDict, mesh: Mesh, reference: Any = None, total_updates: int | None = None
) -> Update:
    """Builds `update(state, batches, temperature, entropy=None) -> (state, metrics)`; compiles nothing before a call.

    The loss is `config.algorithm.loss` ("sft" for supervised fine-tuning). Losses and counts are summed over all rows
    of all batches, and each batch's is divided by the count of all before its backward pass, so that the gradient does
    not depend on how sequences were packed or grouped, nor float16's loss scale on how many tokens there are.

    update: state is donated. batches: from `packing.pack`, on the host, the same on every process. temperature: of the
    distribution that the responses were sampled from; 1 for SFT. entropy: coefficient of its bonus, where the config
    has one; None: `config.algorithm.entropy`. metrics: floats on the host; means over trained tokens where the name
    does not say otherwise. An update whose loss or gradient, or a log-prob of the sampler is not
    finite changes only the counts in `state.opt_state`; see `check_finite`. One whose gradient overflows in float16 is
    repeated with half the loss scale; "overflows" counts that. reference: parameters that `config.algorithm.kl` pulls
    towards; with LoRA None: the base without adapters. total_updates: as in `stage_optimizer`.
    """
    minibatches, epochs, compilations = config.updates.minibatches, config.updates.epochs, Compilations()
    gradient = make_gradient(model, config, mesh, compilations)
    apply = make_apply(model, config, mesh, total_updates, compilations)
    alone, logprobs_of = alone_in_rows(mesh, model.dtype), make_logprobs(model, mesh)
    forward = compilations.of(lambda *args: logprobs_of(*args)[0])
    forward = jax.jit(forward, out_shardings=rows_sharding(mesh))
    after_batch = AFTER_BATCH[mesh.devices.flat[0].platform]

    def in_turn(what: str, params: Any, rows: Sequence[PackedBatch], temperature: Any) -> list:
        found = []
        for number, batch in enumerate(rows, start=1):
            heartbeat(f"batches of the {what}", number, len(rows))
            found.append(forward(params, batch, temperature))
            after_batch(found[-1], found[-2:-1])
        return found

    def optimize(
        state: TrainState, rows: Sequence[PackedBatch], temperature: Any, entropy: Any, count: Any, usable: Any
    ):
        for overflows in itertools.count():
            grads, totals = gradient(state.params, rows, temperature, state.opt_state.loss_scale, count, entropy)
            state, metrics = apply(state, grads, totals, count, usable)
            overflow = metrics.pop("overflow")
            # Only float16 overflows: with other dtypes the host does not wait here to learn of it.
            if model.dtype != "float16" or not overflow:
                return state, metrics | {"overflows": overflows}

    def update(
        state: TrainState, batches: Sequence[PackedBatch], temperature: float, entropy: float | None = None
    ) -> tuple[TrainState, Metrics]:
        start, temperature, compiled = time.perf_counter(), np.float32(temperature), compilations.count
        entropy = np.float32(config.algorithm.entropy if entropy is None else entropy)
        if alone and any(batch.segment_ids.max() > 1 for batch in batches):
            raise ValueError("this mesh's attention kernel needs `pack(..., alone=True)`: a row has several")

        # What the sampler could not tell is not to be trained on: such an update is skipped and counted.
        usable = np.bool_(all(np.isfinite(batch.behaviour_logprobs).all() for batch in batches))
        rows = [put_rows(batch, mesh) for batch in batches]

        # With one update per batch the old log-probs are the current ones; with several they are computed once.
        if minibatches * epochs > 1:
            olds = in_turn("old log-probs", state.params, rows, temperature)
            rows = [batch._replace(old_logprobs=old) for batch, old in zip(rows, olds, strict=True)]
        if config.algorithm.kl:
            towards = split(state.params)[1] if model.lora else reference
            fixed = in_turn("reference log-probs", towards, rows, temperature)
            rows = [batch._replace(reference_logprobs=one) for batch, one in zip(rows, fixed, strict=True)]

        # One gradient and one step of the optimizer for each mini-batch of each epoch.
        history = []
        for _ in range(epochs):
            for part in np.array_split(np.arange(len(batches)), minibatches):
                part = [i for i in part if batches[i].mask.any()]
                if not part:
                    raise ValueError("a batch, or a mini-batch of it, has no token to train on")
                chosen, count = [rows[i] for i in part], divisor([batches[i] for i in part], config)
                state, metrics = optimize(state, chosen, temperature, entropy, count, usable)
                history.append(metrics)
        state = state._replace(step=state.step + 1)
        metrics = _combine(jax.device_get(history))

        # How fast that was, of what the device can do.
        seconds, flops = time.perf_counter() - start, epochs * update_flops(model, batches)
        tokens = epochs * sum(int(np.count_nonzero(batch.segment_ids)) for batch in batches)
        peak_share = flops / seconds / (matmul_peak(model.dtype) * mesh.size)
        metrics |= {"tokens_per_s": tokens / seconds, "flops": flops, "peak_share": peak_share}
        return state, metrics | {"compilations": float(compilations.count - compiled)}

    return update


def make_logprobs(model: ModelConfig, mesh: Mesh) -> Callable:
    """`logprobs(params, rows, temperature) -> (logprobs, entropy)`, float32 [R, T]; 0 where `rows.mask` is 0.

    To be jitted or differentiated.
    """
    summed = make_summed_logprobs(model, mesh)
    return lambda params, rows, temperature: summed(params, rows, temperature, {})[0]


def make_summed_logprobs(model: ModelConfig, mesh: Mesh) -> Callable:
    """`logprobs(params, rows, temperature, sums) -> ((logprobs, entropy), sums)`, with gradients added to sums.

    sums: as ops/gradient_sums.py has them, for all of params or for none.
    """
    transformer = Transformer(model, sharded_attention(mesh))
    one_by_one = ("embedding", "layers") if adds_in_place(model, mesh) else ()

    def logprobs(params: Any, rows: PackedBatch, temperature: jax.Array, sums: Any):
        inner = {name: sums[name] for name in one_by_one if name in sums}
        others = {name: sums[name] for name in sums if name not in inner}
        used, others = use({name: params[name] for name in others}, others)
        params = params | used
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
            (hidden, _), changed = transformer.apply(
                {"params": params, "sums": inner}, rows.tokens, rows.positions, rows.segment_ids, mutable="sums"
            )
        inner, kernel = dict(changed.get("sums", {})), unembedding(params, model)
        if inner and model.tie_word_embeddings:
            kernel, inner["embedding"] = use(kernel, inner["embedding"])
        settings = dict(mask_BT=rows.mask, known=model.known_tokens, mesh=mesh)
        return token_logprobs(hidden, kernel, rows.targets, temperature, **settings), others | inner

    return logprobs


def adds_in_place(model: ModelConfig, mesh: Mesh | AbstractMesh) -> bool:
    """Whether the gradients of each layer and of the embedding are added one by one, as the backward pass has them.

    Else they are put together first and added at once: over several devices, where the layers run in no loop, and those
    of adapters.
    """
    return mesh.size == 1 and not unrolled(model) and model.lora is None


def make_accumulate(
    model: ModelConfig, config: ConfigDict, mesh: Mesh, compilations: Compilations | None = None
) -> Callable:
    """The jitted `accumulate(grads, params, rows, temperature, loss_scale, count, entropy) -> (grads, totals)`.

    Adds the gradient of one more `PackedBatch` to grads, which are donated; totals are those of that batch alone.
    Arguments and results are those of `make_gradient`. compilations: counts those of this one.
    """
    logprobs_of = make_summed_logprobs(model, mesh)

    def accumulate(grads, params, rows, temperature, loss_scale, count, entropy):
        trained, frozen = split(params)

        def loss(sums):
            if frozen:  # adapters are small, and their gradients are added at once
                used, sums = use(trained, sums)
                found, _ = logprobs_of(join(used, frozen), rows, temperature, {})
            else:
                found, sums = logprobs_of(params, rows, temperature, sums)
            total, totals = batch_loss(*found, rows, config, entropy)
            return begin(total * (loss_scale / count), sums), totals

        return jax.grad(loss, has_aux=True)(grads)

    shardings = split(param_shardings(model, mesh))[0], replicated(mesh)
    accumulate = (compilations or Compilations()).of(accumulate)
    return jax.jit(accumulate, donate_argnums=0, out_shardings=shardings)


def make_gradient(
    model: ModelConfig, config: ConfigDict, mesh: Mesh, compilations: Compilations | None = None
) -> Callable:
    """Builds `gradient(params, rows, temperature, loss_scale, count, entropy=0) -> (grads, totals)`.

    rows: list of `PackedBatch` on the mesh. loss_scale, count: the summed loss is multiplied by the one and divided by
    the other, `divisor` of all rows, before the backward pass. entropy: coefficient of its bonus. grads: of what is
    trained (`models.lora.split`), float32, sharded as the parameters, still multiplied by loss_scale. totals: those of
    `batch_loss` over all rows, neither multiplied nor divided.
    """
    accumulate = make_accumulate(model, config, mesh, compilations)
    merge = jax.jit(merge_totals, out_shardings=replicated(mesh))
    shardings, _ = split(param_shardings(model, mesh))
    zeros = jax.jit(partial(jax.tree.map, jnp.zeros_like), out_shardings=shardings)
    after_batch = AFTER_BATCH[mesh.devices.flat[0].platform]

    def gradient(params, rows, temperature, loss_scale, count, entropy=0.0):
        grads, totals = zeros(split(params)[0]), None
        for number, batch in enumerate(rows, start=1):
            heartbeat("batches of the update", number, len(rows))
            grads, new = accumulate(grads, params, batch, temperature, loss_scale, count, entropy)
            before, totals = totals, new if totals is None else merge(totals, new)
            after_batch((grads, totals), before)
        return grads, totals

    return gradient


def make_apply(
    model: ModelConfig,
    config: ConfigDict,
    mesh: Mesh,
    total_updates: int | None = None,
    compilations: Compilations | None = None,
) -> Callable:
    """The jitted `apply(state, grads, totals, count, usable) -> (state, metrics)`: one optimizer update.

    state is donated. grads, totals, count: of `make_gradient`. usable: bool; where it is False, or the loss or a
    gradient is not finite, nothing changes but the counts of skipped updates, or float16's loss scale. total_updates:
    as in `stage_optimizer`.
    """
    optimizer, shardings = stage_optimizer(config, total_updates), state_shardings(model, config, mesh)
    platform, moved = mesh.devices.flat[0].platform, moved_moments(model, config, optimizer)
    piece = apply_piece(mesh, platform)
    kernel = apply_kernel(mesh, platform) if moved is None else None  # XLA reads what is on the host where it lies

    def apply(state: TrainState, grads: Any, totals: tuple[dict, dict], count: jax.Array, usable: jax.Array):
        sums, extremes = totals
        usable = usable & jnp.isfinite(sums["loss"])
        opt_state = state.opt_state._replace(inner=offload.fetched(state.opt_state.inner, moved))
        trained, frozen = split(state.params)
        trained, opt_state, metrics = apply_gradients(optimizer, trained, grads, opt_state, usable, piece, kernel)
        opt_state = opt_state._replace(inner=offload.returned(opt_state.inner, moved))
        metrics |= {name: value / jnp.maximum(sums["tokens"], 1) for name, value in sums.items()}
        metrics |= extremes | {"loss": sums["loss"] / count, "skipped_in_a_row": opt_state.skipped_in_a_row}
        metrics |= {"tokens": sums["tokens"], "sequences": sums["sequences"]}
        return TrainState(state.step, join(trained, frozen), opt_state), metrics

    apply = (compilations or Compilations()).of(apply)
    return jax.jit(apply, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def check_finite(skipped_in_a_row: float, config: ConfigDict) -> None:
    """Raises NonFiniteUpdates when `config.updates.max_skipped` updates in a row were skipped; save the state first."""
    if skipped_in_a_row >= config.updates.max_skipped:
        raise NonFiniteUpdates(
            f"the loss, a gradient or a log-prob of {skipped_in_a_row:.0f} updates in a row was not finite; none of "
            "them changed the parameters. Lower optimizer.learning_rate, or look at the batches in WORKDIR/not_finite "
            "with experiments/replay.py"
        )


def _combine(history: list[dict[str, np.ndarray]]) -> Metrics:
    """One value a metric: the last for counts in a row, sums of other counts, the largest ratio, means of the rest."""
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
            metrics[name] = sum(values) if name in ("skipped", "overflows") else float(np.mean(values))
    return metrics
