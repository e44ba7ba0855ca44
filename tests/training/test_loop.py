"""The GRPO loop: what a run writes, exact resume, stages, and independence of the mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.training import loop
from polaris_jax.training.optimizer import global_norm


def params_of(workdir):
    return jax.tree.map(np.asarray, hf.load(workdir)[1])


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def without_times(rows):
    timed = ("_s", "seconds", "compilations", "peak_share")
    return [{k: v for k, v in row.items() if not (k.startswith("seconds") or k.endswith(timed))} for row in rows]


@pytest.fixture
def run(tiny_config, even_length_pool, tmp_path):
    """Runs the loop in a named directory below tmp_path."""

    def start(name, **overrides):
        return loop.run(tiny_config(**overrides), tmp_path / name)

    return start


def test_a_run_trains_and_tells_what_it_did(run, tmp_path):
    history = run("run", **{"training.evaluate_every": 2})
    frame = history.frame()
    assert list(frame.index) == [1, 2, 3, 4]
    assert (frame["update/grad_norm"] > 0).any()
    assert frame["evaluation/arithmetic/avg@2"].notna().tolist() == [False, True, False, True]
    assert (frame["update/sampler_trainer_gap"] < 1e-4).all()
    assert frame[["groups/all_right", "groups/all_wrong", "groups/mixed"]].sum(axis=1).eq(1).all()
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2, 3, 4]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {1, 2, 3, 4}
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert history.plot().axes[0].get_title() == "reward"


def test_a_killed_run_goes_on_to_the_bit(run, tmp_path, monkeypatch):
    unbroken = run("unbroken")
    step, count = loop.train_step, iter(range(100))

    def killed_in_the_fourth_step(*args):
        if next(count) == 3:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "train_step", killed_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    resumed = run("broken")
    assert without_times(resumed.rows) == without_times(unbroken.rows)
    assert_same(params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken"))


def test_a_finished_run_is_left_as_it_is(run, tmp_path):
    first = run("run", **{"training.steps": 2})
    before = params_of(tmp_path / "run")
    again = run("run", **{"training.steps": 2})
    assert again.rows == first.rows
    assert_same(before, params_of(tmp_path / "run"))


def test_stages_follow_one_another_and_resume_within(run, tmp_path):
    stages = (
        {"name": "short", "steps": 2, "max_response_tokens": 8},
        {"name": "long", "steps": 2, "max_response_tokens": 24, "temperature": 1.2},
    )
    frame = run("run", stages=stages).frame()
    assert frame.stage.tolist() == [0, 0, 1, 1]
    assert (frame["response_length/max"].iloc[:2] <= 8).all()
    assert (frame["response_length/max"].iloc[2:] > 8).any()
    assert run("run", stages=stages).frame().equals(frame)


def test_another_models_checkpoint_is_refused(run):
    run("run", **{"training.steps": 2})
    with pytest.raises(UserError, match="does not fit the configured model"):
        run("run", **{"training.steps": 2, "model.preset": "qwen3-0.6b"})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.train": ""}, "config.data.train: empty"),
        ({"data.train": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        ({"model.preset": "huge"}, "config.model.preset: expected one of tiny"),
        ({"model.preset": "", "model.path": "no/such/dir/at/all"}, "no/such/dir/at/all"),
        ({"model.tokenizer": ""}, "config.model.tokenizer: empty"),
        ({"mesh.fsdp": 3}, "config.mesh: data=1 x fsdp=3"),
        ({"rollout.prompts": 10_000}, "config.rollout.prompts: 10000 a step, but there are 64 problems"),
        ({"algorithm.loss": "gpro"}, "config.algorithm.loss: expected one of"),
        ({"algorithm.advantage": "men"}, "config.algorithm.advantage: expected one of"),
        ({"updates.row_lengths": (32,)}, "config.updates.row_lengths: the longest is 32"),
    ],
)
def test_bad_input_is_refused_in_words_before_anything_is_written(run, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        run("run", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eight_devices_train_like_one(run, tmp_path):
    one = run("one", **{"training.steps": 2, "rollout.prompts": 8})
    program = Path(__file__).with_name("mesh_program.py")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, program, tmp_path / "eight"], env=environment, check=True)
    eight = [json.loads(line) for line in (tmp_path / "eight" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["groups/mixed"] for row in eight)
    for name in ("reward", "response_length", "update/grad_norm", "update/entropy"):
        np.testing.assert_allclose([row[name] for row in eight], one.frame()[name], rtol=1e-4)
    left, right = params_of(tmp_path / "one"), params_of(tmp_path / "eight")
    # Where a gradient is all rounding, Adam's first steps take its sign: single parameters may differ, their mass not.
    difference = global_norm(jax.tree.map(np.subtract, left, right))
    assert difference < 1e-3 * global_norm(right)
