"""The comparison tells a wrong kernel from a right one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.gpu_check import kernels
from polaris_jax.optim.kernel import update_blocks

HEADS = ((4, 2, 32),)


def test_every_kernel_is_compared_where_it_runs():
    assert kernels.names("gpu") == ["gpu-training", "gpu-prefill", "gpu-decode"]
    assert kernels.names("tpu") == ["tpu-training", "tpu-prefill", "tpu-decode"]
    assert kernels.names("cpu") == kernels.names("gpu") + kernels.names("tpu")


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (0.02, True), (0.05, False), (np.nan, False)])
def test_a_kernel_may_be_four_roundings_off(off, holds, monkeypatch):
    def case(owner, emulated, tokens):
        ones = jnp.ones((3, 8), jnp.bfloat16)
        return lambda x: (x * (1 + off), x), lambda x: (x, x), lambda heads, dtype: (ones,)

    monkeypatch.setitem(kernels.CASES, "decode", case)
    assert kernels.compare("gpu-decode", HEADS, 64)[0] == holds


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_a_key_too_few_is_noticed(wrong, monkeypatch):
    cached = kernels._cached

    def forgetful(owner, emulated, lengths, T, seen):
        fewer = [max(length - 1, 0) for length in lengths]
        return cached(owner, emulated, fewer, T, seen)[0], *cached(owner, emulated, lengths, T, seen)[1:]

    if wrong:
        monkeypatch.setattr(kernels, "_cached", forgetful)
    holds, values = kernels.compare("gpu-prefill", HEADS, 64)
    assert holds != wrong
    assert values["bfloat16_portable_error"] < 0.02


@pytest.mark.parametrize("off", [0, 1])
def test_a_wrong_update_is_noticed(off, monkeypatch):
    def wrong(change, grads, kept, scalars, *, interpret):
        params, *moments = update_blocks(change, grads, kept, scalars, interpret=interpret)
        return [jax.tree.map(lambda x: x.at[0, 3, 5].add(off * 0.01), params), *moments]

    monkeypatch.setattr(kernels, "update_blocks", wrong)
    holds, values = kernels.compare_update()
    assert holds == (off == 0)
    assert values["update_codes"] < 1e-3


def test_distance_is_that_of_the_worst_vector():
    expected = np.ones((3, 4, 8))
    found = expected.copy()
    found[1, 2] *= 1.5
    assert kernels.distance((found, expected), (expected, expected)) == pytest.approx(0.5)
    found[0, 0, 0] = np.nan
    assert not kernels.distance((expected, found), (expected, expected)) <= 1e9
