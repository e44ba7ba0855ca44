import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.ops.matmul import biased, matmul, scaled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(24, 5, 7), (5, 7, 24), (7, 24, 5), (2, 3, 16, 4, 9), (3, 4, 16, 9)])
def test_value_and_gradients_are_those_of_the_plain_product(shape, dtype):
    *batch, M, K, N = shape
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(*batch, *s)), dtype) for s in ((M, K), (K, N)))
    weights = rng.normal(size=(*batch, M, N)).astype(np.float32)

    def total(product, x, y):
        return (weights * product(x, y)).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(lambda x, y, f=f: total(f, x, y), argnums=(0, 1)))(x, y)
        for f in (lambda x, y: matmul(x, y, "float32"), lambda x, y: jnp.matmul(x, y, preferred_element_type="float32"))
    )
    assert [g.dtype for g in found[1]] == [g.dtype for g in expected[1]]
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


def test_gradients_of_float32_parameters_are_not_rounded_to_the_compute_dtype():
    """Those of a kernel, a norm's scale and a bias, against sums in float64."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(512, 8)), jnp.bfloat16)
    d_out = jnp.asarray(rng.normal(size=(512, 8)), jnp.bfloat16)
    wide = [np.asarray(a, np.float64) for a in (x, d_out)]
    for function, shape, expected in (
        (lambda x, p: matmul(x, p, "bfloat16"), (8, 8), wide[0].T @ wide[1]),
        (scaled, (8,), (wide[0] * wide[1]).sum(0)),
        (biased, (8,), wide[1].sum(0)),
    ):
        out, pull = jax.vjp(function, x, jnp.ones(shape, jnp.float32))
        assert out.dtype == jnp.bfloat16
        found = pull(d_out)[1]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
