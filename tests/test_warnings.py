"""A deprecated call of our own code fails its test; one of another library does not."""

import warnings

import pytest

WARN = compile("import warnings; warnings.warn('jax.old is deprecated', DeprecationWarning)", "some.py", "exec")


def test_deprecated_calls_of_this_module_fail():
    with pytest.raises(DeprecationWarning):
        warnings.warn("jax.old is deprecated", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize(
    "module", ["polaris_jax", "polaris_jax.ops.attention", "configs.base", "tests.ops.test_kernels"]
)
def test_deprecated_calls_of_our_modules_fail(module):
    with pytest.raises(DeprecationWarning):
        exec(WARN, {"__name__": module})


@pytest.mark.parametrize("module", ["flax.linen", "polaris_jaxer", "importlib._bootstrap"])
def test_those_of_other_libraries_are_theirs(module):
    exec(WARN, {"__name__": module})
