import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.config import override
from polaris_jax.errors import UserError
from polaris_jax.models.presets import PRESETS
from polaris_jax.optim.moments import MOMENTS
from polaris_jax.optim.optimizer import (
    FIRST_LOSS_SCALE,
    LEAST_LOSS_SCALE,
    OPTIMIZERS,
    SCHEDULES,
    apply_gradients,
    init_opt_state,
    make_optimizer,
    updates_applied,
)
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.state import init_state
from polaris_jax.training.update import make_apply

rng = np.random.default_rng(0)
PARAMS = {"a": rng.normal(size=(6, 5)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}


@pytest.fixture
def optimizer():
    c = get_config().optimizer
    c.learning_rate = 3e-3
    return c


def started(optimizer, params=PARAMS, dtype="float32", total=10):
    """The first state, and a function of params, grads, state and whether the batch is usable."""
    chain = make_optimizer(optimizer, total)

    @jax.jit
    def step(params, grads, state, usable=True):
        return apply_gradients(chain, params, grads, state, usable)

    return init_opt_state(chain, params, dtype), step


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1000.0])
def test_ten_updates_follow_torch(clip_norm, optimizer):
    optimizer.clip_norm = clip_norm
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in PARAMS.values()]
    torch_adamw = torch.optim.AdamW(theirs, lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    params, (state, step) = PARAMS, started(optimizer)
    for i in range(10):
        grads = {name: (i + 1) * rng.normal(size=p.shape).astype(np.float32) for name, p in PARAMS.items()}
        params, state, metrics = step(params, grads, state)
        for p, g in zip(theirs, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip_norm or 1e30)
        torch_adamw.step()
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
        assert float(metrics["learning_rate"]) == pytest.approx(3e-3)
    for found, expected in zip(params.values(), theirs, strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "unusable"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_or_not_usable_changes_no_parameter_and_no_moment(name, bad, optimizer):
    optimizer.name = name
    params = {"kernel": rng.normal(size=(2, 6, 5)).astype(np.float32), "b": PARAMS["b"]}
    state, step = started(optimizer, params)
    grads = jax.tree.map(np.ones_like, params)
    params, state, _ = step(params, grads, state)
    usable = bad == "unusable"
    broken = grads if usable else grads | {"b": np.where(np.arange(7) == 3, np.float32(bad), grads["b"])}
    for skipped in (1, 2):
        after, later, metrics = step(params, broken, state, not usable)
        assert metrics["skipped"] == 1
        jax.tree.map(np.testing.assert_array_equal, (after, later.inner), (params, state.inner))
        assert later.skipped == later.skipped_in_a_row == skipped
        params, state = after, later
    _, state, _ = step(params, grads, state)
    assert (state.skipped, state.skipped_in_a_row, updates_applied(state)) == (2, 0, 2)


def test_the_float16_loss_scale_halves_at_an_overflow_and_doubles_after_a_while(optimizer):
    grads, broken = jax.tree.map(np.ones_like, PARAMS), jax.tree.map(lambda p: p * np.nan, PARAMS)
    params, (state, step) = PARAMS, started(optimizer, dtype="float16")
    first = float(state.loss_scale)
    params, state, metrics = step(params, broken, state)
    assert float(state.loss_scale) == first / 2
    assert (metrics["overflow"], metrics["skipped"], state.skipped_in_a_row) == (True, 0, 0)
    for _ in range(100):
        params, state, _ = step(params, grads, state)
    assert float(state.loss_scale) == first


@pytest.mark.parametrize("warmup", [0, 1, 4, 30])
def test_schedules_are_their_closed_forms(warmup, optimizer):
    optimizer.warmup_steps = warmup
    count = np.arange(40)
    ramp = np.minimum(1, (count + 1) / (warmup + 1))
    progress = np.clip((count - warmup) / max(20 - warmup, 1), 0, 1)
    expected = {"constant": 3e-3 * ramp, "cosine": 3e-3 * ramp * (0.55 + 0.45 * np.cos(np.pi * progress))}
    for name, schedule in SCHEDULES.items():
        found = jax.vmap(schedule(optimizer, 20))(jnp.asarray(count))
        np.testing.assert_allclose(found, expected[name], rtol=1e-5)


def test_the_learning_rate_of_an_update_is_that_of_the_updates_before_it(optimizer):
    optimizer.warmup_steps, optimizer.schedule = 4, "cosine"
    params, (state, step) = PARAMS, started(optimizer, total=20)
    for i in range(6):
        params, state, metrics = step(params, jax.tree.map(np.ones_like, PARAMS), state)
        assert float(metrics["learning_rate"]) == pytest.approx(float(SCHEDULES["cosine"](optimizer, 20)(i)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic_loss(name, optimizer):
    optimizer.name, optimizer.learning_rate = name, 0.02
    params = {"kernel": jnp.zeros((3, 8, 16)), "scale": jnp.zeros(16)}
    target = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    loss = lambda params: sum(jnp.sum((params[k] - target[k]) ** 2) for k in params)  # noqa: E731
    state, step = started(optimizer, params)
    before = loss(params)
    for _ in range(100):
        params, state, _ = step(params, jax.grad(loss)(params), state)
    assert loss(params) < before / 2


def test_muon_takes_each_layer_of_a_stack_alone_and_leaves_the_rest_to_adam(optimizer):
    """Beside kernels: a table of vectors, and norms and biases of stacked layers, which are matrices by shape."""
    optimizer.name, optimizer.clip_norm = "muon", 0.0
    shapes = {
        "embedding": (20, 8),
        "layers": {"up": {"kernel": (3, 8, 16), "bias": (3, 16)}, "down": {"kernel": (3, 16, 8)}, "norm": (3, 8)},
    }
    random = lambda: jax.tree.map(  # noqa: E731
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    start, gradients = random(), [random() for _ in range(3)]

    def ran(optimizer, cut):
        params = cut(start)
        state, step = started(optimizer, params)
        for grads in gradients:
            params, state, _ = step(params, cut(grads), state)
        return params

    whole = ran(optimizer, lambda tree: tree)
    for layer in range(3):
        alone = ran(optimizer, lambda tree: tree | {"layers": jax.tree.map(lambda x: x[layer], tree["layers"])})  # noqa: B023
        of_layer = jax.tree.map(lambda x: x[layer], whole["layers"])  # noqa: B023
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), of_layer, alone["layers"])
    optimizer.name = "adamw"
    adam = ran(optimizer, lambda tree: tree)
    np.testing.assert_array_equal(whole["embedding"], adam["embedding"])
    np.testing.assert_array_equal(whole["layers"]["norm"], adam["layers"]["norm"])
    np.testing.assert_array_equal(whole["layers"]["up"]["bias"], adam["layers"]["up"]["bias"])
    assert np.abs(whole["layers"]["up"]["kernel"] - adam["layers"]["up"]["kernel"]).max() > 1e-4


def test_muons_first_step_is_nearly_orthogonal_and_as_long_as_adams(optimizer):
    """Five Newton-Schulz steps leave singular values between 0.5 and 1.5 or so."""
    optimizer.name, optimizer.learning_rate, optimizer.weight_decay = "muon", 1.0, 0.0
    params = {"kernel": np.zeros((2, 16, 48), np.float32)}
    state, step = started(optimizer, params)
    moved, _, _ = step(params, {"kernel": rng.normal(size=(2, 16, 48)).astype(np.float32)}, state)
    singular = np.linalg.svd(moved["kernel"] / (0.2 * np.sqrt(48)), compute_uv=False)
    assert 0.5 < singular.min() < singular.max() < 1.5
    assert np.sqrt(np.mean(np.square(moved["kernel"]))) == pytest.approx(0.2, rel=0.3)


def test_moments_in_fewer_bits_are_refused_where_the_optimizer_has_none():
    keys = {"optimizer.name": "lion", "optimizer.moments": "int8"}
    with pytest.raises(UserError, match=r"optimizer.moments: expected float32, found 'int8'; lion keeps no others"):
        override(get_config(), keys)
    with pytest.raises(UserError, match=r"optimizer.name: expected one of adamw, muon, lion, sgd, found 'adam'"):
        override(get_config(), {"optimizer.name": "adam"})


@pytest.mark.parametrize("kind", MOMENTS)
def test_an_update_is_made_in_place(kind):
    """All of the donated state is written where it lay, and nothing is looked for in a loop."""
    config, model = get_config(), PRESETS["tiny"].replace(dtype="float32")
    config.optimizer.moments = kind
    mesh = make_mesh({}, jax.devices()[:1])
    state = init_state(model, config, mesh)
    totals = dict.fromkeys(("loss", "tokens", "sequences"), jnp.float32(1)), {}
    compiled = make_apply(model, config, mesh).lower(state, state.params, totals, jnp.float32(1), True).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(state))
    if kind != "bfloat16":  # whose random numbers are made in a loop on a CPU
        assert " while(" not in compiled.as_text()


def test_at_the_least_loss_scale_an_update_that_is_not_finite_is_skipped(optimizer):
    params, (state, step) = PARAMS, started(optimizer, dtype="float16")
    broken, halvings = jax.tree.map(lambda p: p * np.nan, PARAMS), 0
    while not state.skipped:
        params, state, metrics = step(params, broken, state)
        halvings += int(metrics["overflow"])
    assert 2.0**halvings * float(state.loss_scale) == FIRST_LOSS_SCALE
    assert float(state.loss_scale) == LEAST_LOSS_SCALE
