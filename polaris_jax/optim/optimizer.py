"""The optimizer by name as a chain of optax transformations, and updates that are skipped when not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from polaris_jax.optim import offload
from polaris_jax.optim.adam import scale_by_adam
from polaris_jax.optim.moments import Blocks, block_axis
from polaris_jax.optim.pieces import Told, piecewise, sum_in_pieces
from polaris_jax.sharding.rules import replicated

FIRST_LOSS_SCALE, LEAST_LOSS_SCALE = 2.0**16, 2.0  # float16 only; of a loss that is a mean
GROW_AFTER = 100  # finite updates until the loss scale doubles
MUON_RMS = 0.2  # root mean square of Muon's updates, as AdamW's are in practice (arXiv 2502.16982, section 2.2)


class OptState(NamedTuple):
    """inner: the state of the optax chain: moments and the like, and counts of the updates applied.

    skipped, skipped_in_a_row: int32, updates left out because the loss, a gradient or a recorded log-prob was not
    finite. loss_scale: float32, what the loss is multiplied with before the backward pass; 1 unless computing in
    float16. finite_in_a_row: int32, updates since the scale last changed.
    """

    inner: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    loss_scale: jax.Array
    finite_in_a_row: jax.Array


def constant(optimizer: ConfigDict, total_updates: int) -> optax.Schedule:
    """The configured learning rate, after a linear warm-up."""
    c = optimizer
    return optax.warmup_constant_schedule(c.learning_rate / (c.warmup_steps + 1), c.learning_rate, c.warmup_steps)


def cosine(optimizer: ConfigDict, total_updates: int) -> optax.Schedule:
    """Half a cosine from the configured learning rate, after a linear warm-up, to a tenth of it at the last update."""
    c, end = optimizer, max(total_updates, optimizer.warmup_steps + 1)
    first = c.learning_rate / (c.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(first, c.learning_rate, c.warmup_steps, end, c.learning_rate / 10)


SCHEDULES: dict[str, Callable[[ConfigDict, int], optax.Schedule]] = {"constant": constant, "cosine": cosine}


def muon(optimizer: ConfigDict) -> optax.GradientTransformation:
    """Muon (arXiv 2502.16982) for the kernels of linear layers, Adam for all else.

    Kernels are [L, in, out], stacked by `nn.scan`: each layer's matrix is made orthogonal by itself. Embeddings and the
    unembedding are tables of vectors rather than maps between them, and are left to Adam with norms and biases.
    """

    def matrices(params):
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), params)

    def names(params):
        return jax.tree.map_with_path(lambda path, _: "muon" if path[-1].key == "kernel" else "adam", params)

    def to_adams_size(updates, _):
        return jax.tree.map(lambda u: MUON_RMS * max(u.shape[-2:]) ** 0.5 * u, updates)

    orthogonal = optax.contrib.scale_by_muon(weight_dimension_numbers=matrices)
    kernels = optax.chain(orthogonal, optax.stateless(to_adams_size))
    return optax.partition({"muon": kernels, "adam": scale_by_adam(optimizer.betas)}, names)


# How gradients become directions; clip, weight decay and learning rate are the same for all.
OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "adamw": lambda optimizer: scale_by_adam(optimizer.betas, optimizer.moments),
    "muon": muon,
    "lion": lambda optimizer: optax.scale_by_lion(*optimizer.betas),
    "sgd": lambda optimizer: optax.trace(decay=optimizer.betas[0]),
}
KEEPS_MOMENTS = ("adamw",)  # as `optimizer.moments` says; the others' are float32


def clip_by_norm(longest: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, whose update is told the norm of all gradients, and so may have a part of them."""

    def update(grads: Any, state: optax.EmptyState, params: Any = None, *, norm: jax.Array, **_: Any):
        return jax.tree.map(lambda g: jax.lax.select(norm < longest, g, (g / norm) * longest), grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def make_optimizer(optimizer: ConfigDict, total_updates: int) -> optax.GradientTransformation:
    """The optimizer of a config's section. total_updates: in the run, for the schedule.

    Gradients longer than `clip_norm` together are shortened to it (0: never). "adamw" is arXiv 1711.05101, as torch
    does it. The last link's state has the count of updates and the learning rate of the last one. Its update takes the
    `norm` of all gradients, and a `piece` as `scale_by_adam`'s does.
    """
    schedule = SCHEDULES[optimizer.schedule](optimizer, total_updates)
    return optax.chain(
        clip_by_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        OPTIMIZERS[optimizer.name](optimizer),
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.inject_hyperparams(optax.scale_by_learning_rate, hyperparam_dtype=jnp.float32)(learning_rate=schedule),
    )


def updates_applied(state: OptState) -> jax.Array:
    """Updates that changed the parameters, int32."""
    return state.inner[-1].count


def restart_schedule(state: OptState) -> OptState:
    """The state with which the learning rate begins anew; nothing else changes."""
    *links, rate = state.inner
    counts = jax.tree.map(lambda count: 0 * count, rate.hyperparams_states)
    return state._replace(inner=(*links, rate._replace(hyperparams_states=counts)))


def init_opt_state(optimizer: optax.GradientTransformation, params: Any, dtype: str) -> OptState:
    """Before the first update. dtype: the model's compute dtype; the loss is scaled where it is float16."""
    zero = jnp.zeros((), jnp.int32)
    scale = jnp.float32(FIRST_LOSS_SCALE if dtype == "float16" else 1.0)
    return OptState(optimizer.init(params), zero, zero, scale, zero)


def opt_state_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh, *, on_host: bool = False
) -> OptState:
    """Shardings of the optimizer's arrays: what belongs to a parameter lies where it lies, all else everywhere.

    The scales of int8 blocks are not split along the axis of the blocks. params: arrays or their shapes; shardings:
    theirs. on_host: whether what belongs to a parameter is in the memory of the host instead of the device's.
    """
    if on_host:
        shardings = jax.tree.map(offload.on_host, shardings)

    def beside(kept, where):
        if isinstance(kept, Blocks):
            axes = [*where.spec, *[None] * kept.codes.ndim][: kept.codes.ndim]
            axes[block_axis(kept.codes.ndim)] = None
            scales = PartitionSpec(*axes)
            return Blocks(where, NamedSharding(mesh, scales, memory_kind=where.memory_kind))
        return kept if isinstance(kept, optax.MaskedNode) else where

    scalar = replicated(mesh)
    inner = optax.tree.map_params(
        optimizer,
        beside,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: scalar,
        is_leaf=lambda x: isinstance(x, Blocks | optax.MaskedNode),
    )
    return OptState(inner, scalar, scalar, scalar, scalar)


def apply_gradients(
    optimizer: optax.GradientTransformation,
    params: Any,
    grads: Any,
    state: OptState,
    usable: jax.Array,
    piece_bytes: float = math.inf,
    in_kernel: Callable | None = None,
) -> tuple[Any, OptState, dict[str, jax.Array]]:
    """One update of all parameters, or none where it is not to be trained on.

    grads: float32, like params, still multiplied by the loss scale. usable: bool, whether the loss and what the sampler
    recorded are finite; an update is skipped where it is False or a gradient is not finite. With a loss scale that can
    be halved, gradients alone that are not finite are an overflow: then the scale is halved and the update is neither
    made nor counted as skipped. piece_bytes: of the parameters that are updated at once; more than that are updated in
    pieces, with temporaries for one. in_kernel: `kernel.update_blocks`, for parameters whose moments are int8 blocks.
    Returns the new parameters and state, and grad_norm (before the clip), learning_rate, skipped and overflow.
    """
    squares = lambda grads: optax.tree.norm(_unscaled(grads, state.loss_scale), squared=True)  # noqa: E731
    norm = jnp.sqrt(sum_in_pieces(squares, grads, piece_bytes))
    learn = usable & jnp.isfinite(norm)
    overflow = usable & ~learn & (state.loss_scale > LEAST_LOSS_SCALE)

    def change(params, grads, inner, told, piece):
        grads = _unscaled(grads, told.loss_scale)
        updates, new = optimizer.update(grads, inner, params, norm=told.norm, piece=piece)
        # Chosen leaf by leaf, within the pass that writes it. `optax.apply_if_finite` branches with `lax.cond`, which
        # copies the whole state, and after so many updates that are not finite it accepts one.
        updates = jax.tree.map(lambda u: jnp.where(told.learn, u, 0), updates)
        kept = jax.tree.map(lambda new, old: jnp.where(told.learn, new, old), new, inner)
        return optax.apply_updates(params, updates), kept

    told = Told(norm, learn, state.loss_scale)
    params, inner = piecewise(change, params, grads, state.inner, told, piece_bytes, in_kernel)
    scale, finite_in_a_row = _next_scale(state.loss_scale, overflow, jnp.where(learn, state.finite_in_a_row + 1, 0))
    skipped = (~learn & ~overflow).astype(jnp.int32)
    skipped_in_a_row = jnp.where(learn, 0, state.skipped_in_a_row + skipped)
    metrics = {
        "grad_norm": norm,
        "learning_rate": inner[-1].hyperparams["learning_rate"],
        "skipped": skipped,
        "overflow": overflow,
    }
    state = OptState(inner, state.skipped + skipped, skipped_in_a_row, scale, finite_in_a_row)
    return params, state, metrics


def _unscaled(grads, loss_scale):
    return jax.tree.map(lambda g: g / loss_scale, grads)


def _next_scale(scale, overflow, finite_in_a_row):
    """Dynamic loss scale (arXiv 1710.03740): halved by an overflow, doubled after a while without; 1 stays 1."""
    grow = (scale > 1) & (finite_in_a_row >= GROW_AFTER)
    changed = jnp.where(overflow, scale / 2, jnp.where(grow, scale * 2, scale))
    return changed, jnp.where(grow, 0, finite_in_a_row)
