import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from configs.base import get_config
from polaris_jax.models.presets import PRESETS
from polaris_jax.optim import moments
from polaris_jax.optim.adam import scale_by_adam
from polaris_jax.optim.optimizer import apply_gradients, init_opt_state, make_optimizer
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.state import init_state, state_shardings

rng = np.random.default_rng(0)
KEY = jax.random.key(0)
TINY = 2.0**-120  # smaller numbers may count as zero
ALL_CODES = np.arange(256, dtype=np.uint8)[None]


def codebook(signed):
    """What the codes stand for beside a largest value of 1."""
    return np.asarray(moments.decode(moments.Blocks(ALL_CODES, np.ones((1, 1), np.float32)), signed=signed))[0]


@pytest.mark.parametrize("signed", [True, False])
def test_the_codebook_is_the_papers(signed):
    """Dynamic tree quantisation: seven decades, each with twice as many evenly spaced values as the one below it."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles, *(-middles if signed else ())]
    found = codebook(signed)
    np.testing.assert_allclose(found, np.sort(values), rtol=1e-4)
    assert (np.diff(found) > 0).all()
    assert found[moments.ZERO[signed]] == 0


def nearest(x, signed):
    """The code of the nearest value, found by looking at all of them; of two as near, the one nearer to zero."""
    book = codebook(signed).astype(np.float64)
    by_size = np.argsort(np.abs(book), kind="stable")
    codes = by_size[np.abs(x.astype(np.float64)[:, None] - book[by_size]).argmin(axis=1)]
    return codes if signed else np.where(x > 0, np.maximum(codes, 1), codes)


encoded = jax.jit(moments.encode, static_argnames=("kind", "signed"))


def codes_of(x, signed):
    """Those of `encode`: a 1 in each block makes the values relative to 1."""
    rows = np.concatenate([x, np.ones(-len(x) % 255, np.float32)]).reshape(-1, 255)
    rows = np.concatenate([np.ones((len(rows), 1), np.float32), rows], axis=1)
    return np.asarray(encoded(rows, "int8", KEY, signed=signed).codes)[:, 1:].ravel()[: len(x)]


@pytest.mark.parametrize("signed", [True, False])
def test_int8_takes_the_nearest_value_at_every_value_every_middle_and_their_neighbours(signed):
    book = codebook(signed)
    points = np.concatenate([book, ((book[1:].astype(np.float64) + book[:-1]) / 2).astype(np.float32)])
    points = np.concatenate([points, *(np.nextafter(points, np.float32(to)) for to in (-2, 2))])
    points = points[(points >= (-1 if signed else 0)) & (points <= 1)]
    points = points[(points == 0) | (np.abs(points) > TINY)]
    assert len(points) > 1400
    np.testing.assert_array_equal(codes_of(points, signed), nearest(points, signed))
    np.testing.assert_array_equal(codes_of(book, signed), ALL_CODES[0])


@settings(deadline=None)  # the first compiles
@given(arrays(np.float32, 512, elements=st.just(0) | st.floats(TINY, 1, width=32)), st.booleans())
def test_int8_takes_the_nearest_value_of_any_number(x, signed):
    x = x * np.float32([1, -1 if signed else 1] * 256)
    np.testing.assert_array_equal(codes_of(x, signed), nearest(x, signed))


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


@pytest.mark.parametrize(("shape", "scales"), [((96,), (3,)), ((8, 512), (8, 2)), ((2, 512, 6), (2, 2, 6))])
def test_blocks_lie_along_a_kernels_input_and_else_along_the_last_axis(shape, scales):
    x = rng.normal(size=shape).astype(np.float32)
    kept = moments.encode(x, "int8", KEY, signed=True)
    assert kept.scales.shape == scales
    blocks = np.moveaxis(np.abs(x), 1, 2).reshape(2, 6, 2, 256) if len(shape) == 3 else np.abs(x).reshape(*scales, -1)
    largest = blocks.max(axis=-1)
    np.testing.assert_array_equal(kept.scales, np.moveaxis(largest, 1, 2) if len(shape) == 3 else largest)


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


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", moments.MOMENTS)
@pytest.mark.parametrize("shape", [(7,), (3, 512), (2, 5, 96)])
def test_moments_start_as_what_zeros_are_kept_as(shape, kind, signed):
    zeros, found = np.zeros(shape, np.float32), moments.zeros(np.ones(shape), kind, signed=signed)
    jax.tree.map(np.testing.assert_array_equal, found, moments.encode(zeros, kind, KEY, signed=signed))
    np.testing.assert_array_equal(moments.decode(found, signed=signed), zeros)


def test_making_moments_of_realistic_shapes_is_compiled_at_once():
    shapes = {"embedding": (151_936, 2560), "up": (36, 2560, 9728), "down": (36, 9728, 2560), "norm": (36, 2560)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    lowered = jax.jit(scale_by_adam((0.9, 0.999), "int8").init).lower(params)
    start = time.perf_counter()
    lowered.compile()
    assert time.perf_counter() - start < 10  # folding the constants took minutes


@pytest.mark.parametrize("kind", moments.MOMENTS)
def test_a_large_second_moment_is_forgotten_at_the_rate_of_beta(kind):
    adam = scale_by_adam((0.9, 0.999), kind)
    step = jax.jit(lambda grads, state: adam.update(grads, state)[1])
    state = step({"w": jnp.full((4, 256), 10.0)}, adam.init({"w": jnp.zeros((4, 256))}))
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
        config = get_config().optimizer
        config.moments, config.learning_rate = kind, 0.02
        optimizer = make_optimizer(config, 60)
        step = jax.jit(lambda params, grads, state: apply_gradients(optimizer, params, grads, state, True)[:2])
        params = jnp.zeros((8, 64))
        state = init_opt_state(optimizer, params, "float32")
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
    numbers = 64  # bytes of counts and of the learning rate
    assert size(state.opt_state.inner) <= share * 2 * size(state.params) + numbers
    shardings = state_shardings(PRESETS["tiny"], config, mesh)
    jax.tree.map(lambda x, s: s.shard_shape(x.shape), state, shardings)  # raises where one does not fit
