import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.ops.matmul import matmul


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
