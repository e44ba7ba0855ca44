"""The gradient of a batch is one number: packing, grouping, order and recorded log-probs do not change it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.transformer import REMAT_POLICIES, Transformer, unembed
from polaris_jax.rl.losses import QUANTISED_CAP, divisor, importance_cap
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rows import put_rows
from polaris_jax.training.update import make_gradient, make_logprobs

from .conftest import policy_gradient, relative_error


@pytest.fixture(scope="module")
def expected(params, sequences):
    from configs.base import get_config

    c = get_config()
    c.updates.row_lengths, c.updates.rows = (64,), 4
    return policy_gradient(params, sequences, c)


LAYOUTS = {
    "longer rows": dict(row_lengths=(256,), rows=2),
    "long rows by blocks": dict(row_lengths=(640,), rows=1),
    "two lengths": dict(row_lengths=(32, 64), rows=4),
    "one row a pass": dict(row_lengths=(64,), rows=1),
    "no packing": dict(row_lengths=(64,), rows=12),
}


SLOW = ("two lengths", "one row a pass")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in LAYOUTS])
def test_gradient_does_not_depend_on_how_rows_are_made(name, params, sequences, config, expected):
    config.updates.update(LAYOUTS[name])
    batches = None
    if name == "no packing":
        batches = [pack([sequence], config.updates)[0][0] for sequence in sequences]
    found = policy_gradient(params, sequences, config, batches=batches)
    assert relative_error(found[0], expected[0]) < 1e-5
    assert found[1] == pytest.approx(expected[1], rel=1e-5, abs=1e-7)


def test_gradient_does_not_depend_on_the_order_of_sequences(params, sequences, config, expected):
    found = policy_gradient(params, sequences[::-1], config)
    assert relative_error(found[0], expected[0]) < 1e-5


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_divisor_is_that_of_the_sequences_however_they_are_packed(aggregation, sequences, config):
    config.algorithm.aggregation = aggregation
    tokens = sum(int(sequence.mask[1:].sum()) for sequence in sequences)
    counts = {"token": tokens, "sequence": 12, "constant": 12 * config.rollout.max_response_tokens}
    for rows in (1, 4):
        config.updates.rows = rows
        assert divisor(pack(sequences, config.updates)[0], config) == counts[aggregation]


@pytest.mark.parametrize("aggregation", ["sequence", "constant"])
def test_other_aggregations_do_not_depend_on_rows_either(aggregation, params, sequences, config):
    config.algorithm.aggregation = aggregation
    first = policy_gradient(params, sequences, config)
    config.updates.rows = 1
    assert relative_error(policy_gradient(params, sequences, config)[0], first[0]) < 1e-5


def test_a_segment_keeps_its_bits_whatever_lies_beside_it(model, params, config):
    rng = np.random.default_rng(0)
    mesh = make_mesh({}, jax.devices()[:1])
    logprobs_of = jax.jit(make_logprobs(model, mesh))

    def logprobs(neighbour):
        tokens = [rng_tokens, neighbour]
        sequences = [Sequence(t.astype(np.int32), np.ones(len(t), np.float32)) for t in tokens]
        (batch,), _ = pack(sequences, config.updates)
        found, _ = logprobs_of(params, put_rows(batch, mesh), 1.0)
        return np.asarray(found)[batch.segment_ids == 1]

    rng_tokens = rng.integers(0, 64, 40)
    np.testing.assert_array_equal(logprobs(rng.integers(0, 64, 20)), logprobs(rng.integers(0, 64, 20)))


def test_off_policy_sequences_take_their_ratio_to_the_recorded_logprobs(params, sequences, config):
    """With every sequence marked, the gradient is that of ratios to the recorded log-probs."""
    marked = [Sequence(s.tokens, s.mask, s.advantage, s.behaviour_logprobs, off_policy=True) for s in sequences]
    found = policy_gradient(params, marked, config)
    config.algorithm.old_logprobs = "recorded"
    recorded = policy_gradient(params, sequences, config)
    assert relative_error(found[0], recorded[0]) < 1e-6
    config.algorithm.old_logprobs = "trainer"
    assert relative_error(policy_gradient(params, sequences, config)[0], recorded[0]) > 1e-2


def test_the_importance_weight_is_truncated(model, params, sequences, config):
    """A cap of nearly 0 weights every token alike, so the gradient is the plain one times the cap."""
    plain = policy_gradient(params, sequences, config)
    config.algorithm.importance_cap = 1e-3
    found = policy_gradient(params, sequences, config)
    assert relative_error(jax.tree.map(lambda g: g * 1e3, found[0]), plain[0]) < 1e-4


def test_with_a_cap_batches_of_an_older_policy_are_weighted_to_the_trainers(params, sequences, config):
    """The ratio is that to the trainer's old log-probs, as if nothing were older; a cap that nothing reaches counts."""
    config.algorithm.importance_cap = 5.0
    weighted = policy_gradient(params, sequences, config)
    config.rollout.devices = 1
    assert relative_error(policy_gradient(params, sequences, config)[0], weighted[0]) < 1e-6
    config.algorithm.importance_cap = 0.0
    assert relative_error(policy_gradient(params, sequences, config)[0], weighted[0]) > 1e-2


def test_weight_and_ratio_lead_from_the_sampler_to_the_current_policy(params, sequences, config):
    """Unclipped, their product is the ratio to the recorded log-probs, wherever the old policy stands between."""
    config.algorithm.clip = (1.0, 100.0)
    config.algorithm.old_logprobs = "recorded"
    recorded = policy_gradient(params, sequences, config)
    config.algorithm.old_logprobs, config.algorithm.importance_cap = "trainer", 100.0
    batches, _ = pack(sequences, config.updates)
    olds = [
        batch._replace(old_logprobs=batch.behaviour_logprobs + np.float32(shift) * batch.mask)
        for batch, shift in zip(batches, np.linspace(-0.5, 0.5, len(batches)), strict=True)
    ]
    found = policy_gradient(params, sequences, config, batches=olds)
    assert relative_error(found[0], recorded[0]) < 1e-5


def test_quantised_rollouts_are_weighted_with_a_cap_of_two(params, sequences, config):
    """Recorded log-probs far below the trainer's take every weight to the cap."""
    far = [replace(s, behaviour_logprobs=s.behaviour_logprobs - 9) for s in sequences]
    plain = policy_gradient(params, far, config)
    config.rollout.weights = "int8"
    found = policy_gradient(params, far, config)
    assert relative_error(jax.tree.map(lambda g: g / QUANTISED_CAP, found[0]), plain[0]) < 1e-5
    assert importance_cap(config) == QUANTISED_CAP == 2
    config.algorithm.importance_cap = 5.0
    assert importance_cap(config) == 5
    config.algorithm.loss = "sft"
    assert importance_cap(config) == 0


def test_the_kl_term_pulls_to_the_reference(model, params, sequences, config):
    """Its gradient is that of mean k3, by finite difference along itself."""
    config.algorithm.kl = 0.5
    mesh = make_mesh({}, jax.devices()[:1])
    rows = [put_rows(batch, mesh) for batch in pack(sequences, config.updates)[0]]
    reference = jax.tree.map(lambda p: p * 1.1, params)
    logprobs_of = jax.jit(make_logprobs(model, mesh))
    references = [logprobs_of(reference, batch, 1.0)[0] for batch in rows]
    nothing = [
        batch._replace(advantages=batch.advantages * 0, reference_logprobs=reference)
        for batch, reference in zip(rows, references, strict=True)
    ]
    grads, (sums, _) = make_gradient(model, config, mesh)(params, nothing, *[np.float32(1)] * 3)

    def k3_sum(params):
        x = [np.asarray(r - logprobs_of(params, b, 1.0)[0], np.float64) for b, r in zip(rows, references, strict=True)]
        return float(sum(((np.exp(d) - d - 1) * b.mask).sum() for d, b in zip(x, rows, strict=True)))

    assert float(sums["kl_reference"]) == pytest.approx(k3_sum(params), rel=1e-4)
    assert float(sums["loss"]) == pytest.approx(0.5 * k3_sum(params), rel=1e-4)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    ahead, behind = (jax.tree.map(lambda p, g, e=e: p + e * g / norm, params, grads) for e in (1e-3, -1e-3))
    assert 0.5 * (k3_sum(ahead) - k3_sum(behind)) / 2e-3 == pytest.approx(float(norm), rel=2e-2)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_entropy_bonus_has_the_gradient_of_whole_logits(rows, model, params, sequences, config):
    """One sequence after the other, unpacked, with autodiff through the softmax of all logits."""
    config.algorithm.entropy, config.updates.rows = 0.3, rows
    nothing = [replace(s, advantage=0.0) for s in sequences]
    found, loss = policy_gradient(params, nothing, config, entropy=0.3)
    transformer = Transformer(model)

    @jax.jit
    def entropies(params, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        hidden, _ = transformer.apply({"params": params}, tokens, positions, jnp.ones_like(tokens))
        logp = jax.nn.log_softmax(unembed(hidden, params["embedding"])[0] / 0.8)
        return -(jnp.exp(logp) * logp).sum(-1)

    def bonus(params):
        padded = [np.pad(s.tokens[:-1], (0, 64 - len(s.tokens) + 1)) for s in nothing]
        masks = [np.pad(s.mask[1:], (0, 64 - len(s.tokens) + 1)) for s in nothing]
        sums = [(m * entropies(params, t[None])).sum() for t, m in zip(padded, masks, strict=True)]
        return -0.3 * sum(sums) / sum(m.sum() for m in masks)

    expected, gradient = jax.value_and_grad(bonus)(params)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert relative_error(found, gradient) < 1e-5


def test_masked_sequences_have_no_part_in_the_gradient_however_rows_are_made(params, sequences, config):
    """As if their advantages were 0, in the same denominator."""
    far = [replace(s, behaviour_logprobs=s.behaviour_logprobs + np.float32(n % 3)) for n, s in enumerate(sequences)]
    silent = [replace(s, advantage=s.advantage if n % 3 == 0 else 0.0) for n, s in enumerate(far)]
    expected, _ = policy_gradient(params, silent, config)
    config.algorithm.mask_drifted = 0.7
    for rows in (1, 4):
        config.updates.rows = rows
        assert relative_error(policy_gradient(params, far, config)[0], expected) < 1e-5


def test_remat_policies_change_what_is_kept_and_not_the_gradient(model, params, sequences, config):
    mesh = make_mesh({}, jax.devices()[:1])
    config.updates.rows = 4
    batch = put_rows(pack(sequences, config.updates)[0][0], mesh)
    kept, gradients = [], []
    for remat in REMAT_POLICIES:
        logprobs_of = make_logprobs(model.replace(remat=remat), mesh)
        loss = lambda p, logprobs_of=logprobs_of: (logprobs_of(p, batch, 1.0)[0] * batch.mask).sum()  # noqa: E731
        residuals = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        kept.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals)))
        gradients.append(jax.jit(jax.grad(loss))(params))
    assert list(REMAT_POLICIES) == ["offload", "full", "attention", "dots", "none"]
    assert kept[1:] == sorted(set(kept))  # each keeps more than the one before it, but for where that is
    assert relative_error(gradients[0], gradients[1]) == 0  # where the layers' inputs lie changes nothing
    for gradient in gradients[2:]:
        assert relative_error(gradient, gradients[0]) < 1e-5


def test_memory_of_a_pass_grows_linearly_with_its_rows(model, params, sequences, config):
    """And not with rows x length x vocabulary."""
    large = model.replace(vocab_size=32_768)
    mesh = make_mesh({}, jax.devices()[:1])
    logprobs_of = make_logprobs(large, mesh)
    shapes = jax.eval_shape(lambda p: p | {"embedding": np.zeros((32_768, 32), np.float32)}, params)

    def temporaries(rows):
        config.updates.rows = rows
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, 512), x.dtype), pack(sequences, config.updates)[0][0]
        )
        grad = jax.jit(jax.grad(lambda p, b: logprobs_of(p, b, 1.0)[0].sum()))
        return grad.lower(shapes, batch).compile().memory_analysis().temp_size_in_bytes

    few, some, many = (temporaries(rows) for rows in (16, 32, 64))
    assert many - some < 2.1 * (some - few)
    assert (many - some) / (32 * 512) < 32_768 * 4 / 2  # bytes a token, beside one row of logits
