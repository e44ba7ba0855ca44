"""A sweep trains each combination once, whoever asks and in whatever process, and draws it."""

import math
import os

import pandas as pd
import pytest
from scipy import stats

from polaris_jax import sweep
from polaris_jax.data.arithmetic import problems
from polaris_jax.data.card import write_parquet
from polaris_jax.data.problems import SUFFIX
from polaris_jax.errors import UserError
from polaris_jax.training import loop
from polaris_jax.training.metrics import History


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: two steps whose reward tells clip and seed; lists the configs it was given."""
    configs = []

    def run(config, workdir):
        configs.append(config)
        workdir.mkdir(parents=True)
        reward = config.algorithm.clip[1] + config.seed
        return History(tuple({"step": step, "reward": reward * step} for step in (1, 2)), workdir)

    monkeypatch.setattr(loop, "run", run)
    return configs


VALUES = {"algorithm.clip": [(0.2, 0.2), [0.2, 0.28]], "rollout.temperature": [0.7, 1.0]}


def test_every_combination_and_seed_is_trained_once(trained, tiny_config, tmp_path):
    frame = sweep.sweep(tiny_config(seed=5), VALUES, seeds=3, workdir=tmp_path)
    assert len(trained) == 2 * 2 * 3
    assert list(frame) == ["algorithm.clip", "rollout.temperature", "seed", "run", "step", "reward"]
    assert len(frame) == 2 * 2 * 3 * 2
    assert set(frame["algorithm.clip"]) == {(0.2, 0.2), (0.2, 0.28)}
    assert set(frame.seed) == {5, 6, 7}
    for row in frame.to_dict("records"):
        assert row["reward"] == (row["algorithm.clip"][1] + row["seed"]) * row["step"]
    again = sweep.sweep(tiny_config(seed=5), VALUES, seeds=3, workdir=tmp_path)
    pd.testing.assert_frame_equal(again, frame)
    more = sweep.sweep(tiny_config(seed=5), {"algorithm.clip": [(0.2, 0.28)]}, seeds=4, workdir=tmp_path)
    assert len(trained) == 2 * 2 * 3 + 1  # at the config's own temperature, 1.0, only the fourth seed is new
    assert len(more) == 8


def test_variants_are_trained_with_every_seed_and_found_again_by_a_grid(trained, tiny_config, tmp_path):
    variants = {"as it is": {}, "hot": {"rollout.temperature": 1.3, "stages": ({"name": "a", "steps": 2},)}}
    frame = sweep.compare(tiny_config(seed=5), variants, seeds=2, workdir=tmp_path)
    assert list(frame) == ["variant", "seed", "run", "step", "reward"]
    assert [(c.seed, c.rollout.temperature, len(c.stages)) for c in trained] == [
        (5, 1.0, 0), (5, 1.3, 1), (6, 1.0, 0), (6, 1.3, 1),
    ]  # fmt: skip
    ends = frame[frame.step == 2].set_index(["variant", "seed"]).reward
    assert (ends == [2 * 5.28, 2 * 5.28, 2 * 6.28, 2 * 6.28]).all()
    assert sweep.outcomes(frame, ["variant"], "reward")["hot",] == "11.6, +0 ± 0"
    sweep.sweep(tiny_config(seed=5), {"rollout.temperature": [1.0]}, seeds=2, workdir=tmp_path)
    assert len(trained) == 4


def test_an_interval_is_students():
    gains = pd.Series([1.0, 2.0, 4.0])
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert sweep.margin(gains) == pytest.approx((high - low) / 2)
    assert math.isnan(sweep.margin(gains[:1]))


def test_the_hash_is_of_every_key_and_of_nothing_else(tiny_config):
    one = sweep.config_hash(tiny_config())
    assert one == sweep.config_hash(tiny_config())
    assert len(one) == 16
    assert one != sweep.config_hash(tiny_config(**{"algorithm.clip": (0.2, 0.27)}))
    assert one != sweep.config_hash(tiny_config(stages=({"name": "a", "mesh.context": 4},)))


def test_a_bad_combination_is_refused_before_anything_runs(trained, tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"did you mean `rollout.samples`\?"):
        sweep.sweep(tiny_config(), {"rollout.smaples": [4]}, workdir=tmp_path)
    with pytest.raises(UserError, match="expected at least 2, found 1"):
        sweep.sweep(tiny_config(), {"rollout.samples": [4, 1]}, workdir=tmp_path)
    assert not trained


def test_curves_show_the_mean_in_the_band_of_the_seeds(trained, tiny_config, tmp_path):
    frame = sweep.sweep(tiny_config(), VALUES, seeds=3, workdir=tmp_path)
    figure = sweep.curves(frame, "algorithm.clip", ["reward"])
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["clip (0.2, 0.2): 2.4", "clip (0.2, 0.28): 2.56, +0.16 ± 0"]
    assert lines[1].get_ydata().tolist() == pytest.approx([1.28, 2.56])  # of seeds 0, 1 and 2
    (low, high) = figure.axes[0].collections[1].get_datalim(figure.axes[0].transData).get_points()[:, 1]
    assert (low, high) == pytest.approx((0.28, 2 * 2.28))
    figure = sweep.curves(frame, ["algorithm.clip", "rollout.temperature"], ["reward"], smooth=2)
    assert figure.axes[0].lines[0].get_label() == "clip (0.2, 0.2), temperature 0.7: 1.8"
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([1.2, 1.8])


def test_a_gain_is_over_runs_of_the_same_seed():
    """By hand: differences 0.1, 0.2 and 0.3, so 0.2 with t(0.975, 2) = 4.303 times 0.1 / sqrt(3)."""
    ends = {("a", 0): 0.1, ("a", 1): 0.5, ("a", 2): 0.9, ("b", 0): 0.2, ("b", 1): 0.7, ("b", 2): 1.2}
    rows = [
        {"x": x, "seed": seed, "run": f"{x}{seed}", "step": step, "reward": end if step == 2 else 0.0}
        for (x, seed), end in ends.items()
        for step in (1, 2)
    ]
    assert sweep.outcomes(pd.DataFrame(rows), ["x"], "reward") == {("a",): "0.5", ("b",): "0.7, +0.2 ± 0.25"}
    assert sweep.outcomes(pd.DataFrame(rows), ["x"], "reward", 2) == {("a",): "0.25", ("b",): "0.35, +0.1 ± 0.12"}
    alone = pd.DataFrame([row for row in rows if row["seed"] == 0])
    assert sweep.outcomes(alone, ["x"], "reward")["b",] == "0.2, +0.1 ± ?"


@pytest.mark.parametrize("processes", [1, 2, 3, 200])
def test_cores_are_dealt_out(processes):
    cores, shares = os.sched_getaffinity(0), sweep.shares_of_cores(processes)
    assert len(shares) == processes
    assert all(shares)
    assert set.union(*shares) == cores
    if processes <= len(cores):
        assert sum(map(len, shares)) == len(cores)


@pytest.mark.slow
def test_parallel_runs_are_those_of_one_process(tiny_config, tmp_path):
    write_parquet(tmp_path / "problems.parquet", problems("train", 16, SUFFIX))
    base = tiny_config(**{"training.steps": 2, "data.train": str(tmp_path / "problems.parquet")})
    values = {"rollout.temperature": [0.7, 1.3]}
    one, two = (sweep.sweep(base, values, 1, workdir=tmp_path / str(n), processes=n) for n in (1, 2))
    same = ["rollout.temperature", "seed", "run", "step", "reward", "response_length", "update/grad_norm"]
    pd.testing.assert_frame_equal(one[same], two[same], rtol=1e-4)
    assert (one.response_length > 0).all()
