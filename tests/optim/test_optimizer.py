import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs.base import get_config
from polaris_jax.optim.optimizer import adamw, init_opt_state, learning_rate

rng = np.random.default_rng(0)
PARAMS = {"a": rng.normal(size=(6, 5)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}


@pytest.fixture
def optimizer():
    c = get_config().optimizer
    c.learning_rate = 3e-3
    return c


def step_function(optimizer, total=10):
    return jax.jit(lambda params, grads, state: adamw(params, grads, state, optimizer, total))


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1000.0])
def test_ten_updates_follow_torch(clip_norm, optimizer):
    optimizer.clip_norm = clip_norm
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in PARAMS.values()]
    torch_adamw = torch.optim.AdamW(theirs, lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    params, state, step = PARAMS, init_opt_state(PARAMS, optimizer, "float32"), step_function(optimizer)
    for i in range(10):
        grads = {name: (i + 1) * rng.normal(size=p.shape).astype(np.float32) for name, p in PARAMS.items()}
        before = params
        params, state, metrics = step(params, grads, state)
        for p, g in zip(theirs, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip_norm or 1e30)
        torch_adamw.step()
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
        moved = np.sqrt(sum(((params[name] - before[name]) ** 2).sum() for name in params))
        assert float(metrics["update_norm"]) == pytest.approx(float(moved), rel=1e-3)
    for found, expected in zip(params.values(), theirs, strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_no_parameter_and_no_moment(bad, optimizer):
    step = step_function(optimizer)
    grads = jax.tree.map(np.ones_like, PARAMS)
    params, state, _ = step(PARAMS, grads, init_opt_state(PARAMS, optimizer, "float32"))
    broken = {"a": grads["a"], "b": np.where(np.arange(7) == 3, np.float32(bad), grads["b"])}
    for skipped in (1, 2):
        after, later, metrics = step(params, broken, state)
        assert metrics["skipped"] == 1
        jax.tree.map(np.testing.assert_array_equal, after, params)
        jax.tree.map(
            np.testing.assert_array_equal, (later.mu, later.nu, later.count), (state.mu, state.nu, state.count)
        )
        assert later.skipped == later.skipped_in_a_row == skipped
        params, state = after, later
    _, state, _ = step(params, grads, state)
    assert (state.skipped, state.skipped_in_a_row) == (2, 0)


def test_the_float16_loss_scale_halves_at_an_overflow_and_doubles_after_a_while(optimizer):
    step = step_function(optimizer)
    grads, broken = jax.tree.map(np.ones_like, PARAMS), jax.tree.map(lambda p: p * np.nan, PARAMS)
    params, state = PARAMS, init_opt_state(PARAMS, optimizer, "float16")
    first = float(state.loss_scale)
    params, state, _ = step(params, broken, state)
    assert float(state.loss_scale) == first / 2
    for _ in range(100):
        params, state, _ = step(params, grads, state)
    assert float(state.loss_scale) == first


def test_schedules(optimizer):
    optimizer.warmup_steps = 4
    rates = [float(learning_rate(jnp.int32(i), optimizer, 20)) for i in range(30)]
    np.testing.assert_allclose(rates[:6], np.array([0.2, 0.4, 0.6, 0.8, 1, 1]) * 3e-3, rtol=1e-5)
    optimizer.schedule = "cosine"
    rates = [float(learning_rate(jnp.int32(i), optimizer, 20)) for i in range(30)]
    assert rates[4] == pytest.approx(3e-3)
    assert rates[12] == pytest.approx(0.55 * 3e-3)
    np.testing.assert_allclose(rates[20:], 3e-4, rtol=1e-5)
