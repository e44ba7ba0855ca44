"""What a run keeps of its groups: what was sampled, and what the update saw of every token."""

import jax
import numpy as np
import pytest

from polaris_jax.files import read_steps
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import group_log, loop
from polaris_jax.types import Group, Problem, Rollout


@pytest.fixture
def workdir(tiny_config, even_length_pool, tmp_path):
    """A run of two steps that keeps all of its groups; rows of two lengths."""
    changes = {"training.steps": 2, "training.log_samples": 4, "updates.row_lengths": (80, 128)}
    loop.run(tiny_config(**changes), tmp_path / "run")
    return tmp_path / "run"


def test_the_kept_figures_are_those_of_the_update(workdir):
    rows, _ = read_steps(workdir / "metrics.jsonl")
    assert group_log.logged_steps(workdir) == [1, 2]
    for row in rows:
        logged = group_log.load(workdir, row["step"])
        rollouts = [rollout for one in logged for rollout in one.group.rollouts]
        gaps = np.concatenate([array for one in logged for array in one.gaps])
        entropies = np.concatenate([array for one in logged for array in one.entropies])
        assert len(rollouts) == 16
        assert len(gaps) == len(entropies) == sum(len(rollout.tokens) for rollout in rollouts)
        assert np.abs(gaps.astype(np.float64)).mean() == pytest.approx(row["update/sampler_trainer_gap"], abs=1e-5)
        assert entropies.astype(np.float64).mean() == pytest.approx(row["update/entropy"], rel=1e-3)
        assert np.mean([one.group.rewards for one in logged]) == pytest.approx(row["reward"])
        reasons = [reason for one in logged for reason in one.reasons]
        assert reasons.count("equal") / 16 == row.get("verdict/equal", 0)


def test_values_lie_beside_the_tokens_that_they_are_of(tiny_config, tmp_path):
    """With a made-up trainer whose log-prob of a token is its id, each token's gap tells which token it is of."""
    rng, config = np.random.default_rng(0), tiny_config(**{"updates.row_lengths": (16, 40), "updates.minibatches": 2})
    groups = []
    for n in range(3):
        tokens = [rng.integers(1, 99, rng.integers(1, 30)).astype(np.int32) for _ in range(4)]
        prompt, zeros = np.arange(1, 4 + n, dtype=np.int32), [np.zeros(len(t), np.float32) for t in tokens]
        rollouts = [Rollout(f"p{n}", g, prompt, tokens[g], zeros[g], "stop") for g in range(4)]
        groups.append(Group(Problem(f"p{n}", "?", ("1",)), tuple(rollouts), np.ones(4, np.float32)))

    def logprobs(params, rows, temperature):
        return jax.numpy.float32(rows.targets), jax.numpy.float32(rows.targets) * temperature

    looked = group_log.look(logprobs, None, groups, [["equal"] * 4] * 3, config, 2.0, make_mesh(config.mesh))
    for one in looked:
        for rollout, gap, entropy in zip(one.group.rollouts, one.gaps, one.entropies, strict=True):
            np.testing.assert_array_equal(gap, rollout.tokens)
            np.testing.assert_array_equal(entropy, 2 * rollout.tokens)


def test_a_full_disk_does_not_end_the_run(workdir, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    group_log.keep(workdir, 3, group_log.load(workdir, 2))
    assert "groups not kept: No space left on device" in capsys.readouterr().err
    assert group_log.logged_steps(workdir) == [1, 2]
