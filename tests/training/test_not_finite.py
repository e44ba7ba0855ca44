"""What is not finite stops a run with state and batch on disk, and a replay names the sequence and the token."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import NonFiniteUpdates, UserError
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.runs import start
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import loop, not_finite, replay
from polaris_jax.types import Rollout


@pytest.fixture
def stopped(tiny_config, even_length_pool, tmp_path, monkeypatch):
    """The workdir of a run whose sampler gave a log-prob that is not finite, two steps in a row."""
    generate = loop.RolloutEngine.generate

    def poisoned(self, *args, **settings):
        for rollout in generate(self, *args, **settings):
            if rollout.sample == 2 and len(rollout.tokens) > 5:
                logprobs = rollout.logprobs.copy()
                logprobs[5] = -np.inf
                rollout = Rollout(**{**vars(rollout), "logprobs": logprobs})
            yield rollout

    monkeypatch.setattr(loop.RolloutEngine, "generate", poisoned)
    with pytest.raises(NonFiniteUpdates, match="2 updates in a row"):
        loop.run(tiny_config(**{"updates.max_skipped": 2, "algorithm.rescue": True}), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_stopped_run_is_saved_with_its_batches_which_a_replay_explains(stopped):
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == ["1", "2"]
    assert sorted(path.name for path in (stopped / "not_finite").iterdir()) == ["0.npz", "1.npz"]
    kept = not_finite.load(stopped / "not_finite" / "1.npz")
    assert (kept.step, kept.temperature) == (1, 1.0)
    model, params = hf.load(stopped, mesh=make_mesh(kept.config.mesh), step=2)
    assert replay.bad_parameters(params) == {}
    findings = list(replay.find(kept, model, params))
    assert len(findings) == 16
    bad = [finding for finding in findings if finding.what]
    assert 0 < len(bad) <= 4
    for finding in bad:
        assert finding.what == "behaviour log-prob"
        row = kept.batches[finding.batch]
        place = np.flatnonzero(np.abs(row.segment_ids[finding.row]) == finding.segment)[finding.token - 1]
        assert not np.isfinite(row.behaviour_logprobs[finding.row, place])

    script = Path(__file__).parents[2] / "experiments" / "replay.py"
    command = [sys.executable, script, f"--batch={stopped}/not_finite/1.npz"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"step 1: {len(bad)} of 16 not finite" in told
    assert told.count("behaviour") == len(bad)


@pytest.mark.slow
def test_a_poisoned_parameter_is_named(tiny_config):
    config = tiny_config()
    mesh, tokenizer = make_mesh(config.mesh), start.load_tokenizer(config)
    model, params = start.load_model(config, mesh, tokenizer)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(np.nan)
    assert replay.bad_parameters(params) == {"['final_norm']['scale']": 1}
    sequences = [Sequence(np.arange(4), np.float32([0, 1, 1, 1]), 1.0, np.zeros(4, np.float32))]
    kept = not_finite.SkippedBatch(0, 1.0, config, pack(sequences, config.updates)[0])
    (finding,) = replay.find(kept, model, params)
    assert (finding.what, finding.token, finding.tokens) == ("log-prob", 1, 4)


def test_only_the_newest_batches_are_kept_and_other_files_are_refused(tiny_config, tmp_path):
    for step in (8, 9, 10, 11):
        path = not_finite.keep(tmp_path, step, [], 1.0, tiny_config())
    assert sorted(path.stem for path in path.parent.iterdir()) == ["10", "11", "9"]
    path.write_bytes(path.read_bytes()[:-30])
    for broken in (path, tmp_path / "missing.npz"):
        with pytest.raises(UserError, match="expected a batch of a run's not_finite"):
            not_finite.load(broken)
