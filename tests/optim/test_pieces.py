"""An update made piece by piece is the update made at once, with memory for a piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.optim.kernel import update_blocks
from polaris_jax.optim.moments import MOMENTS
from polaris_jax.optim.optimizer import OPTIMIZERS, apply_gradients, init_opt_state, make_optimizer
from polaris_jax.optim.pieces import piece_count

rng = np.random.default_rng(0)
SHAPES = {
    "embedding": (30, 64),
    "layers": {"up": {"kernel": (6, 64, 128), "bias": (6, 128)}, "norm": {"scale": (6, 64)}},
    "final_norm": {"scale": (64,)},
}
PIECE = 4 * 64 * 128  # one layer's kernel; a third of the embedding


def random(shapes=SHAPES):
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def started(name, kind, piece, in_kernel=None):
    c = get_config().optimizer
    c.name, c.moments, c.learning_rate = name, kind, 3e-3
    chain = make_optimizer(c, 10)
    begin = jax.jit(lambda params: init_opt_state(chain, params, "float32"))
    step = lambda *arguments: apply_gradients(chain, *arguments, piece, in_kernel)  # noqa: E731
    return begin, jax.jit(step, donate_argnums=(0, 2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("adamw", kind) for kind in MOMENTS), *((name, "float32") for name in OPTIMIZERS if name != "adamw")],
)
def test_pieces_are_updated_as_the_whole_is(name, kind):
    """Twice, with a gradient that is clipped, and one in between that is not finite; bfloat16 rounds at random."""
    params, gradients = random(), [random() for _ in range(3)]
    gradients[1]["embedding"] = gradients[1]["embedding"].at[3, 5].set(jnp.nan)
    found = []
    for piece in (float("inf"), PIECE):
        begin, step = started(name, kind, piece)
        now, state = jax.tree.map(jnp.copy, params), begin(params)
        told = []
        for grads in gradients:
            now, state, metrics = step(now, grads, state, True)
            told.append(jax.device_get(metrics))
        found.append((now, state, told))
    (whole, state, told), (pieces, other, also) = found
    close = 1e-2 if kind == "bfloat16" else 1e-6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=close), pieces, whole)
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, state)
    assert [x["skipped"] for x in also] == [x["skipped"] for x in told] == [0, 1, 0]
    for one, two in zip(also, told, strict=True):
        for key in one:
            np.testing.assert_allclose(one[key], two[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_temporaries_are_of_a_piece(kind):
    begin, step = started("adamw", kind, PIECE)
    params = random()
    state = begin(params)
    memory = step.lower(params, params, state, True).compile().memory_analysis()
    kept = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes >= kept
    assert memory.temp_size_in_bytes < 12 * PIECE < sum(x.nbytes for x in jax.tree.leaves(params)) * 4


def test_pieces_are_as_few_as_are_small_enough():
    array = jax.ShapeDtypeStruct((12, 100), jnp.float32)
    assert [piece_count(array, most) for most in (4800, 4799, 1600, 1599, 400, 1)] == [1, 2, 3, 4, 12, 12]


LARGE = {
    "embedding": (512, 256),
    "layers": {"up": {"kernel": (3, 512, 96), "bias": (3, 96)}, "narrow": {"kernel": (3, 2**15, 6)}},
    "final_norm": {"scale": (256,)},
}


def test_the_kernel_of_gpus_updates_as_xla_does():
    """Twice, with a gradient that is clipped, and one in between that is not finite. Codes at the middle between two
    values may be the next ones."""
    params, gradients = random(LARGE), [random(LARGE) for _ in range(3)]
    gradients[1]["embedding"] = gradients[1]["embedding"].at[3, 5].set(jnp.nan)
    chosen, found = [], []

    def in_kernel(change, grads, kept, scalars):
        chosen.extend(map(jnp.shape, jax.tree.leaves(grads)))
        return update_blocks(change, grads, kept, scalars, interpret=True)

    for kernel in (None, in_kernel):
        begin, step = started("adamw", "int8", float("inf"), kernel)
        now, state = jax.tree.map(jnp.copy, params), begin(params)
        for grads in gradients:
            now, state, metrics = step(now, grads, state, True)
        found.append((now, state, metrics))
    assert chosen == [(512, 256), (3, 512, 96)]
    (one, state, told), (two, other, also) = found
    assert told == also
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), two, one)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if x.dtype == jnp.uint8:
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1
            assert np.mean(x != y) < 1e-3
        else:
            np.testing.assert_allclose(x, y, rtol=1e-6)
