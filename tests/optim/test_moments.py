import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.presets import PRESETS
from polaris_jax.optim import moments
from polaris_jax.optim.optimizer import adamw, init_opt_state
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.state import init_state, state_shardings

rng = np.random.default_rng(0)
KEY = jax.random.key(0)


@pytest.mark.parametrize("signed", [True, False])
def test_int8_keeps_seven_decades_of_each_block(signed):
    x = rng.normal(size=(3, 512)).astype(np.float32) * np.float32([[1e-8], [1.0], [1e6]])
    x = x if signed else np.square(x)
    kept = moments.encode(x, "int8", KEY, signed=signed)
    assert (kept.codes.dtype, kept.codes.shape, kept.scales.shape) == (jnp.uint8, x.shape, (3, 2))
    error = np.abs(moments.decode(kept, signed=signed) - x)
    # half of the widest gap: 0.9 / 64 of the top decade with a sign, 0.9 / 128 without
    assert (error <= np.repeat(kept.scales, 256, axis=1) * 0.9 / (64 if signed else 128) / 1.99).all()
    top = np.abs(x) > 0.1 * np.repeat(kept.scales, 256, axis=1)
    assert (error[top] / np.abs(x)[top]).max() < 0.08
    again = moments.decode(
        moments.encode(moments.decode(kept, signed=signed), "int8", KEY, signed=signed), signed=signed
    )
    np.testing.assert_allclose(again, moments.decode(kept, signed=signed), rtol=0.01)  # -1 is not in the book


def test_a_second_moment_in_int8_becomes_zero_only_where_it_is():
    x = np.float32([[0, 1e-30, 1e-12, 1.0]])
    found = moments.decode(moments.encode(x, "int8", KEY, signed=False), signed=False)
    np.testing.assert_array_equal(found[0] > 0, [False, True, True, True])
    assert found[0, 3] == 1


def test_bfloat16_rounds_to_a_neighbour_and_is_right_on_average():
    x = np.full(200_000, 1 + 2**-9, np.float32)  # a quarter of the way from 1 to the next bfloat16
    found = moments.decode(moments.encode(x, "bfloat16", KEY, signed=True), signed=True)
    assert set(np.unique(found)) == {1.0, 1 + 2**-7}
    assert found.mean() == pytest.approx(1 + 2**-9, abs=5 * 2**-7 * np.sqrt(0.1875 / len(x)))


@pytest.mark.parametrize("kind", moments.MOMENTS)
def test_a_large_second_moment_is_forgotten_at_the_rate_of_beta(kind):
    optimizer = get_config().optimizer
    optimizer.moments, optimizer.clip_norm = kind, 0.0
    params = {"w": jnp.zeros((4, 256))}
    step = jax.jit(lambda grads, state: adamw(params, grads, state, optimizer, 10)[1])
    state = step({"w": jnp.full((4, 256), 10.0)}, init_opt_state(params, optimizer, "float32"))
    for _ in range(300):
        state = step({"w": jnp.zeros((4, 256))}, state)
    kept = moments.decode(state.nu["w"], signed=False).mean()
    if kind == "int8":  # every value of a block is its largest, which is exact
        assert kept == pytest.approx(0.1 * 0.999**300, rel=1e-3)
    assert kept == pytest.approx(0.1 * 0.999**300, rel=0.01)


@pytest.mark.parametrize(("kind", "close"), [("bfloat16", 0.01), ("int8", 0.06)])
def test_the_path_of_the_parameters_is_close_to_that_of_float32(kind, close):
    """A noisy quadratic bowl, as far from the float32 path as a small share of the way."""
    target = rng.normal(size=(8, 64)).astype(np.float32)
    noise = rng.normal(size=(60, 8, 64)).astype(np.float32)

    def path(kind):
        optimizer = get_config().optimizer
        optimizer.moments, optimizer.learning_rate = kind, 0.02
        step = jax.jit(lambda params, grads, state: adamw(params, grads, state, optimizer, 60)[:2])
        params, state = jnp.zeros((8, 64)), init_opt_state(jnp.zeros((8, 64)), optimizer, "float32")
        for i in range(60):
            params, state = step(params, params - target + 0.3 * noise[i], state)
        return np.asarray(params)

    exact = path("float32")
    assert np.linalg.norm(path(kind) - exact) < close * np.linalg.norm(exact)


@pytest.mark.parametrize(("kind", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.27)])
def test_what_moments_take_and_where_they_lie(kind, share):
    config = get_config()
    config.optimizer.moments = kind
    mesh = make_mesh({}, jax.devices()[:1])
    state = init_state(PRESETS["tiny"], config, mesh)
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert size((state.opt_state.mu, state.opt_state.nu)) <= share * 2 * size(state.params)
    shardings = state_shardings(PRESETS["tiny"], config, mesh)
    jax.tree.map(lambda x, s: s.shard_shape(x.shape), state, shardings)  # raises where one does not fit
