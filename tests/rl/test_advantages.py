import numpy as np
import pytest

from polaris_jax.rl.advantages import ADVANTAGES, soft_overlong_punishment

REWARDS = np.random.default_rng(0).random((6, 5)).astype(np.float32)


def slow(name, group):
    """From the papers, one group at a time, in float64."""
    group, n = np.asarray(group, np.float64), len(group)
    if name == "group":
        return (group - group.mean()) / (np.sqrt(((group - group.mean()) ** 2).sum() / (n - 1)) + 1e-6)
    if name == "mean":
        return group - group.mean()
    return np.array([group[i] - np.delete(group, i).mean() for i in range(n)])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_the_papers_formulas(name):
    found = ADVANTAGES[name](REWARDS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [slow(name, group) for group in REWARDS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.7])
def test_equal_rewards_have_no_advantage(name, value):
    assert not ADVANTAGES[name](np.full((2, 7), value, np.float32)).any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_is_refused(name):
    with pytest.raises(ValueError, match="2 or more samples"):
        ADVANTAGES[name](np.ones((3, 1), np.float32))


def test_soft_overlong_punishment():
    found = soft_overlong_punishment(np.array([0, 80, 90, 100, 130]), max_tokens=100, buffer_tokens=20)
    np.testing.assert_allclose(found, [0, 0, -0.5, -1, -1])
