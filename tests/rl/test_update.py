import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax import supervision
from polaris_jax.optim.optimizer import FIRST_LOSS_SCALE, updates_applied
from polaris_jax.rl.losses import entropy_weight, next_entropy_coefficient
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import update as updates
from polaris_jax.training.platform import AFTER_BATCH
from polaris_jax.training.state import init_state
from polaris_jax.training.update import NonFiniteUpdates, check_finite, make_update

from .conftest import policy_gradient


@pytest.fixture
def start(model, config, params):
    """A function that gives update and a fresh state for the config as it is then."""

    def make(model=model):
        mesh = make_mesh({}, jax.devices()[:1])
        copy = jax.tree.map(np.array, params)
        return make_update(model, config, mesh), init_state(model, config, mesh, copy)

    return make


def test_one_update_on_the_policy_itself(start, config, sequences):
    """The ratio is 1, nothing is clipped, and the loss is minus the mean advantage of the trained tokens."""
    update, state = start()
    batches, _ = pack(sequences, config.updates)
    state, metrics = update(state, batches, 0.8)
    trained = np.concatenate([np.full(int(s.mask[1:].sum()), s.advantage) for s in sequences])
    assert metrics["loss"] == pytest.approx(-trained.mean(), abs=1e-5)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["clip_below"] == metrics["clip_above"] == metrics["skipped"] == 0
    assert metrics["tokens"] == len(trained)
    assert metrics["sequences"] == pytest.approx(len(sequences))
    assert metrics["sampler_trainer_kl"] > 0
    assert 0 < metrics["entropy"] <= np.log(64) + 1e-4
    assert int(state.step) == int(updates_applied(state.opt_state)) == 1
    assert all(isinstance(value, float) for value in metrics.values())


def test_several_updates_take_their_ratios_to_the_policy_before_the_first(start, config, sequences):
    config.updates.minibatches, config.updates.epochs = 2, 2
    config.optimizer.learning_rate = 1e-2
    update, state = start()
    state, metrics = update(state, pack(sequences, config.updates)[0], 1.0)
    assert int(updates_applied(state.opt_state)) == 4
    assert int(state.step) == 1
    assert metrics["ratio_max"] > 1.001
    assert metrics["ratio_min"] < 0.999


def test_what_was_compiled_is_counted(start, config, sequences):
    config.updates.rows, config.updates.minibatches = 2, 2
    update, state = start()
    counts = []
    for half in (sequences, sequences, sequences[:4]):
        state, metrics = update(state, pack(half, config.updates)[0], 1.0)
        counts.append(metrics["compilations"])
    assert counts[0] >= 3  # old log-probs, gradients and the optimizer
    assert counts[1] == 0
    assert counts[2] <= 2 * 2


BATCH_S = 0.2


def slow(function):
    """The same, but its results are there only after `BATCH_S`, while the call itself returns at once."""

    @jax.jit
    def later(tree):
        first, scalar = jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct((), jnp.float32)
        zero = jax.pure_callback(lambda _: time.sleep(BATCH_S) or jnp.float32(0), scalar, first)
        return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)

    return lambda *args: later(function(*args))


@pytest.mark.parametrize("platform", AFTER_BATCH)
def test_a_long_update_is_heard_of_while_it_runs(platform, start, config, sequences, monkeypatch):
    """Else the watchdog takes it for a hang: an update may last longer than `training.watchdog_minutes`."""
    config.updates.rows = 1
    monkeypatch.setitem(AFTER_BATCH, "cpu", AFTER_BATCH[platform])
    make_accumulate = updates.make_accumulate
    monkeypatch.setattr(updates, "make_accumulate", lambda *args: slow(make_accumulate(*args)))
    update, state = start()
    batches = (pack(sequences, config.updates)[0] * 8)[:8]
    state, _ = update(state, batches, 1.0)  # compiles
    times = [time.monotonic()]
    with supervision.showing(lambda *_: times.append(time.monotonic())):
        update(state, batches, 1.0)
    times.append(time.monotonic())
    assert max(np.diff(times)) < 4 * BATCH_S < times[-1] - times[0]


class Computed:
    """An array that a device computes; keeps whether the host has waited for it."""

    waited = False

    def block_until_ready(self):
        self.waited = True


@pytest.mark.parametrize("platform", AFTER_BATCH)
def test_the_host_waits_for_a_batch_on_cpus_alone(platform):
    """On accelerators for the one before it, so that the next is queued while this one is computed."""
    present, before = Computed(), Computed()
    AFTER_BATCH[platform](present, before)
    assert (present.waited, before.waited) == ((True, False) if platform == "cpu" else (False, True))


@pytest.mark.slow
def test_a_bonus_raises_the_entropy_and_a_target_holds_it(start, config, sequences):
    """All tokens rewarded, again and again: without a bonus the policy collapses onto them."""
    config.optimizer.learning_rate = 3e-3
    batches, _ = pack([replace(sequence, advantage=1.0) for sequence in sequences], config.updates)

    def entropies(**algorithm):
        config.algorithm.update(algorithm)
        update, state = start()
        coefficient, found = None, [None]
        for _ in range(120):
            weight = entropy_weight(coefficient, found[-1], config.algorithm)
            state, metrics = update(state, batches, 1.0, weight)
            found.append(metrics["entropy"])
            coefficient = next_entropy_coefficient(coefficient, found[-1], config.algorithm)
        return np.array(found[1:])

    plain, bonus = entropies(), entropies(entropy=0.5)
    assert plain[0] == bonus[0] > 4
    assert plain[-1] < 1 < 2.5 < bonus[-1]
    held = entropies(entropy=0.0, entropy_target=2.0, entropy_step=0.02)
    assert plain[0] == held[0]
    assert abs(held[-20:].mean() - 2) < 0.2


def test_sft_learns(start, config, sequences):
    config.algorithm.loss = "sft"
    config.optimizer.learning_rate = 1e-2
    update, state = start()
    batches, _ = pack(sequences, config.updates)
    losses = []
    for _ in range(10):
        state, metrics = update(state, batches, 1.0)
        losses.append(metrics["loss"])
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("field", ["advantages", "behaviour_logprobs"])
def test_updates_that_are_not_finite_are_skipped_and_in_the_end_stop_the_run(start, config, sequences, field):
    config.updates.max_skipped = 2
    update, state = start()
    batches, _ = pack(sequences, config.updates)
    broken = [batch._replace(**{field: getattr(batch, field) * np.float32(np.nan)}) for batch in batches]
    before = jax.tree.map(np.asarray, state.params)
    for skipped in (1, 2):
        state, metrics = update(state, broken, 1.0)
        assert metrics["skipped_in_a_row"] == skipped
        jax.tree.map(np.testing.assert_array_equal, state.params, before)
        if skipped == 1:
            check_finite(metrics["skipped_in_a_row"], config)
    with pytest.raises(NonFiniteUpdates, match="2 updates in a row"):
        check_finite(metrics["skipped_in_a_row"], config)
    state, metrics = update(state, batches, 1.0)
    assert metrics["skipped_in_a_row"] == 0
    check_finite(metrics["skipped_in_a_row"], config)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_follows_float32(dtype, start, model, config, sequences):
    batches, _ = pack(sequences, config.updates)
    norms = []
    for changed in (model, model.replace(dtype=dtype)):
        update, state = start(changed)
        norms.append(update(state, batches, 1.0)[1]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def by_kind(gradient):
    """The gradient's arrays by the last part of their name: kernel, scale, embedding."""
    kinds = {}
    for path, array in jax.tree_util.tree_leaves_with_path(gradient):
        kinds.setdefault(path[-1].key, []).append(np.ravel(array))
    return {kind: np.concatenate(arrays) for kind, arrays in kinds.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [
        ("bfloat16", {"kernel": 0.02, "scale": 0.02, "embedding": 0.02}),
        ("float16", {"kernel": 0.003, "scale": 0.003, "embedding": 0.003}),
    ],
)
def test_half_precision_gradients_are_close_to_float32_ones(dtype, bounds, params, model, config, sequences):
    exact, _ = policy_gradient(params, sequences, config)
    half, _ = policy_gradient(params, sequences, config, model=model.replace(dtype=dtype), loss_scale=2**10)
    exact, half = by_kind(exact), by_kind(half)
    assert set(exact) == set(bounds)
    for kind, bound in bounds.items():
        assert np.linalg.norm(half[kind] - exact[kind]) < bound * np.linalg.norm(exact[kind]), kind


def test_a_loss_of_very_many_tokens_skips_nothing_in_float16(start, model, config):
    """Summed over 400,000 tokens, the loss times the first scale would be far beyond what float16 holds."""
    rng, tokens = np.random.default_rng(0), 64
    row = Sequence(rng.integers(0, 64, tokens + 1).astype(np.int32), np.ones(tokens + 1, np.float32))
    config.algorithm.loss, config.updates.rows = "sft", 400_000 // tokens
    update, state = start(model.replace(dtype="float16"))
    batches, _ = pack([row] * config.updates.rows, config.updates)
    state, metrics = update(state, batches, 1.0)
    assert metrics["tokens"] == 400_000
    assert metrics["skipped"] == metrics["overflows"] == 0
    assert state.opt_state.loss_scale == FIRST_LOSS_SCALE


def test_a_batch_that_overflows_in_float16_is_repeated_at_half_the_scale(start, model, config, sequences):
    """And the update is the one that the lower scale would have given at once, to the bit."""
    batches, _ = pack(sequences, config.updates)
    updated = []
    for scale in (2.0**40, None):
        update, state = start(model.replace(dtype="float16"))
        scale = np.float32(scale or updated[0][0].opt_state.loss_scale)
        state = state._replace(opt_state=state.opt_state._replace(loss_scale=jnp.asarray(scale)))
        updated.append(update(state, batches, 1.0))
    (state, metrics), (at_once, without) = updated
    assert 1 < metrics["overflows"] == 40 - np.log2(state.opt_state.loss_scale)
    assert metrics["skipped"] == metrics["skipped_in_a_row"] == without["overflows"] == 0
    assert int(updates_applied(state.opt_state)) == int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state, at_once)


def test_what_no_scale_makes_finite_is_skipped_once(start, model, config, sequences):
    """A loss that is not finite is no overflow: the scale stays, and nothing is repeated."""
    update, state = start(model.replace(dtype="float16"))
    batches, _ = pack(sequences, config.updates)
    broken = [batch._replace(advantages=batch.advantages * np.float32(np.nan)) for batch in batches]
    state, metrics = update(state, broken, 1.0)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], metrics["overflows"]) == (1, 1, 0)
    assert state.opt_state.loss_scale == FIRST_LOSS_SCALE


def test_packed_rows_are_refused_where_the_kernel_knows_no_segments(start, config, sequences, monkeypatch):
    monkeypatch.setattr("polaris_jax.training.update.alone_in_rows", lambda mesh, dtype: True)
    update, state = start()
    batches, _ = pack(sequences, config.updates)
    with pytest.raises(ValueError, match=r"pack\(..., alone=True\)"):
        update(state, batches, 1.0)


def test_a_batch_with_nothing_to_train_on_is_refused(start, config, sequences):
    update, state = start()
    batches, _ = pack(sequences, config.updates)
    with pytest.raises(ValueError, match="no token to train on"):
        update(state, [batch._replace(mask=batch.mask * 0) for batch in batches], 1.0)
