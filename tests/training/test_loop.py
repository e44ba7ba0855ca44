"""The GRPO loop: what a run writes, exact resume, stages, and independence of the mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.evaluation import job
from polaris_jax.models.presets import PRESETS
from polaris_jax.rollout.codec import rollouts_to_arrays
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.runs.profile import kernels
from polaris_jax.runs.start import load_model, load_tokenizer
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import loop, solutions
from tests.conftest import EvenLengthPool, killed


def params_of(workdir):
    return jax.tree.map(np.asarray, hf.load(workdir)[1])


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def without_times(rows):
    timed = ("_s", "seconds", "compilations", "peak_share", "device_hours")
    here = ("seconds", "rollout/")  # what the engine did: nothing, where the rollouts were kept from an earlier start
    return [{k: v for k, v in row.items() if not (k.startswith(here) or k.endswith(timed))} for row in rows]


def traced_programs(workdir):
    """Which steps have a trace, and whether the programs of rollout and update are in it."""
    programs = {step: {kernel.module for kernel in kernels(step)} for step in (workdir / "profile").iterdir()}
    return {step.name: {"jit_decode", "jit_accumulate", "jit_apply"} <= found for step, found in programs.items()}


@pytest.fixture
def run(tiny_config, even_length_pool, tmp_path):
    """Runs the loop in a named directory below tmp_path."""

    def start(name, allow_changed=(), **overrides):
        return loop.run(tiny_config(**overrides), tmp_path / name, allow_changed=allow_changed)

    return start


def test_a_run_trains_and_tells_what_it_did(run, tmp_path):
    history = run("run", **{"training.evaluate_every": 2, "training.profile_steps": (3, 3)})
    frame = history.frame()
    assert list(frame.index) == [1, 2, 3, 4]
    assert (frame["update/grad_norm"] > 0).any()
    assert frame["evaluation/arithmetic/avg@2"].notna().tolist() == [False, True, False, True]
    assert (frame["update/sampler_trainer_gap"] < 1e-4).all()
    assert frame[["groups/all_right", "groups/all_wrong", "groups/mixed"]].sum(axis=1).eq(4).all()
    assert frame[[f"pass_rate/{k}_of_4" for k in range(5)]].sum(axis=1).eq(4).all()
    assert (frame["pass_rate/0_of_4"] == frame["groups/all_wrong"]).all()
    lengths = frame[["response_length/p10", "response_length/p50", "response_length/p90", "response_length/max"]]
    assert (lengths.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert frame.diversity.between(0, 1).all()
    assert (frame.temperature == 1.0).all()
    assert (frame["cost/device_hours"].diff().iloc[1:] > 0).all()
    assert frame["cost/device_hours"].iloc[-1] * 3600 > frame["seconds/step"].sum()
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2, 3, 4]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {1, 2, 3, 4}
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert history.plot().axes[0].get_title() == "reward"
    assert traced_programs(tmp_path / "run") == {"step-000003": True}


def test_evaluation_within_training_is_the_evaluation_job(run, tiny_config, tmp_path, monkeypatch):
    """At its last step, on that step's checkpoint: a longer limit and context than training's, and all problems."""
    monkeypatch.setattr(job, "verifier_pool", lambda config: EvenLengthPool())
    questions = ["Start with 4, first +5. What is the result?", "Start with 4" + ", then +1" * 40 + ". What is it?"]
    path, found = tmp_path / "benchmark.jsonl", []
    path.write_text("".join(json.dumps({"problem": text, "answer": "9"}) + "\n" for text in questions))
    overrides = {
        "training.steps": 1, "training.evaluate_every": 1, "evaluation.benchmarks": ("arithmetic:3", str(path)),
        "evaluation.max_response_tokens": 30, "evaluation.temperature": 0.8, "evaluation.yarn_factor": 1.5,
    }  # fmt: skip
    own = job.evaluate_all

    def recorded(*args):
        found.append(own(*args))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(job, "evaluate_all", recorded)
        (row,) = run("run", **overrides).rows
    config = tiny_config(**overrides | {"model.path": str(tmp_path / "run")})
    expected = job.run(config, tmp_path / "evaluation")
    assert found == [expected]
    assert len(expected.problems) == 6
    assert max(record.length for record in expected.records) > 24
    for name, scores in expected.scores.items():
        k = scores["samples"]
        assert row[f"evaluation/{name}/avg@{k}"] == scores[f"avg@{k}"]["mean"]
        assert row[f"evaluation/{name}/length"] == scores["length"]["mean"]


def test_memory_for_sampling_and_evaluation_is_checked_when_a_run_starts(run, tmp_path, monkeypatch):
    evaluated = {"training.evaluate_every": 1, "evaluation.max_response_tokens": 5000}
    with pytest.raises(UserError, match=r"evaluation.max_response_tokens=5000 take .* rollout.cache_gib=0.003 has"):
        run("run", **evaluated, **{"rollout.cache_gib": 0.003})
    monkeypatch.setitem(PLATFORMS, "cpu", PLATFORMS["cpu"]._replace(memory=lambda _: 24 * 2**20))
    with pytest.raises(UserError, match=r"GiB a device beside .* of the trainer's state, .*evaluation.max_resp"):
        run("run", **evaluated, **{"rollout.slots": 4})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_run_samples_with_weights_in_eight_bits_and_measures_what_they_do(run):
    frame = run("run", **{"training.steps": 2, "rollout.weights": "int8"}).frame()
    assert frame["update/sampler_trainer_gap"].between(1e-4, 0.1).all()
    assert (frame["update/sampler_trainer_ratio_max"] > 1 + 1e-4).all()
    assert (frame["update/grad_norm"] > 0).any()


EXPLORE = {"algorithm.rescue": True, "algorithm.substitute": True}
STABLE = {  # an entropy target out of reach: the coefficient rises from step to step
    "algorithm.entropy_target": 10.0,
    "algorithm.covariance_clip": 0.1,
    "algorithm.covariance_bounds": (0.1, 9.0),
    "algorithm.mask_drifted_negative": 1e-9,
}


@pytest.fixture
def few_problems(monkeypatch):
    """Makes every step visit the same problems."""
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 4)


def host_of(workdir):
    """The host state of the newest checkpoint, without its times and solutions, and those."""
    args = ocp.args.Composite(host=ocp.args.JsonRestore())
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("host", "arrays")) as checkpoints:
        step = checkpoints.latest_step()
        saved = dict(checkpoints.restore(step, args=args)["host"])
    kept, _ = solutions.read(workdir / "checkpoints" / str(step), saved.pop("solutions"))
    return saved | {"device_seconds": 0.0}, kept


def test_a_killed_run_goes_on_to_the_bit(run, tmp_path, monkeypatch, few_problems):
    unbroken = run("unbroken", **EXPLORE, **STABLE)
    told = unbroken.frame()
    np.testing.assert_allclose(told["update/entropy_coefficient"], [0, 0.005, 0.01, 0.015])
    assert (told["update/covariance_clipped"] > 0).any()
    assert (told["update/mask_drifted_negative"] > 0).any()
    killed(monkeypatch, loop, "train_step", at=4)
    away = {"optimizer.offload": True}  # moments on the host are no other run
    with pytest.raises(KeyboardInterrupt):
        run("broken", **EXPLORE, **STABLE, **away)
    resumed = run("broken", **EXPLORE, **STABLE, **away, **{"training.profile_steps": (4, 9)})
    assert traced_programs(tmp_path / "broken") == {"step-000004": True}
    assert without_times(resumed.rows) == without_times(unbroken.rows)
    assert_same(params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken"))
    left, right = host_of(tmp_path / "broken"), host_of(tmp_path / "unbroken")
    assert left[0] == right[0]
    assert list(left[1]) == list(right[1]) != []
    assert_same(rollouts_to_arrays([*left[1].values()]), rollouts_to_arrays([*right[1].values()]))


class OnlyTheFirst(EvenLengthPool):
    """Takes the first `right` responses for right, and no later one."""

    def __init__(self, right):
        self.right = right

    def submit(self, response, answer):
        self.right -= 1
        return super().submit("" if self.right >= 0 else "1", answer)


def test_failed_groups_learn_from_their_earlier_solutions(run, monkeypatch, few_problems):
    pool = OnlyTheFirst(16)
    monkeypatch.setattr(loop, "verifier_pool", lambda config: pool)
    frame = run("run", **EXPLORE, **{"training.steps": 2, "training.checkpoint_every": 1}).frame()
    assert frame["groups/all_right"].tolist() == [4, 0]
    assert frame["groups/all_wrong"].tolist() == [0, 4]
    assert frame["groups/rescued"].tolist() == [0, 4]
    assert frame["groups/substituted"].tolist() == [0, 0]
    assert frame["update/grad_norm"].iloc[0] == 0  # nothing mixed: nothing to learn from, and nothing breaks
    assert frame["update/grad_norm"].iloc[1] > 0
    assert frame["update/ratio_max"].iloc[1] > 1 + 1e-4 > frame["update/ratio_max"].iloc[0]
    assert frame.reward.tolist() == [1, 0]  # of what was sampled


def test_with_too_few_mixed_groups_there_is_no_update(run, tiny_config, tmp_path, monkeypatch):
    pool = OnlyTheFirst(2)  # of 4 x 4: two groups at most are mixed
    monkeypatch.setattr(loop, "verifier_pool", lambda config: pool)
    frame = run("run", **{"training.steps": 1, "algorithm.min_mixed": 1 / 2}).frame()
    assert frame["update/too_few_mixed"].tolist() == [1]
    config = tiny_config()
    mesh = make_mesh(config.mesh)
    assert_same(params_of(tmp_path / "run"), load_model(config, mesh, load_tokenizer(config))[1])


def test_an_extended_context_is_the_updates_too(run):
    yarn = {"rollout.yarn_factor": 4.0, "rollout.yarn_original": 16}
    frame = run("run", **yarn, **{"training.steps": 1}).frame()
    assert (frame["update/sampler_trainer_gap"] < 1e-4).all()


def test_responses_that_were_cut_off_are_left_out_and_counted(run):
    settings = {"algorithm.mask_truncated": True, "training.steps": 2}
    frame = run("some", **settings).frame()
    assert (frame["update/masked_truncated"] == 16 * frame.cut_off).all()
    trained = frame[frame["update/masked_truncated"] < 16]
    assert len(trained)
    np.testing.assert_allclose(trained["update/sequences"], 16 - trained["update/masked_truncated"], rtol=1e-6)
    frame = run("few", **settings, **{"rollout.max_response_tokens": 2}).frame()
    assert (frame["update/masked_truncated"] == 16).any()  # nothing is left of such a batch, and no update is made
    assert (frame["update/grad_norm"].isna() == (frame["update/masked_truncated"] == 16)).all()


@pytest.mark.slow
def test_a_stage_searches_its_temperature_once(run, tmp_path, monkeypatch):
    stages = ({"name": "first", "steps": 1}, {"name": "second", "steps": 3, "temperature": "search"})
    settings = {"stages": stages, "search.problems": 2, "search.samples": 2, "training.checkpoint_every": 10}
    asked = []

    def search(measure, target, start, *, highest):
        asked.append((target, start, measure(1.2)[1]))
        return 1.25

    monkeypatch.setattr("polaris_jax.training.stages.search_temperature", search)
    unbroken = run("unbroken", **settings)
    assert unbroken.frame().temperature.tolist() == [1.0, 1.25, 1.25, 1.25]
    killed(monkeypatch, loop, "enter_stage", at=2)
    with pytest.raises(KeyboardInterrupt):
        run("broken", **settings)
    killed(monkeypatch, loop, "train_step", at=3)
    with pytest.raises(KeyboardInterrupt):
        run("broken", **settings)
    resumed = run("broken", **settings)
    assert asked[0] == asked[1]
    assert len(asked) == 2
    assert without_times(resumed.rows) == without_times(unbroken.rows)
    assert_same(params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken"))


@pytest.mark.slow
def test_easy_problems_are_dropped_when_a_stage_ends(run, monkeypatch):
    monkeypatch.setattr(loop, "verifier_pool", lambda config: OnlyTheFirst(24))
    stages = ({"name": "first", "steps": 2}, {"name": "second", "steps": 2})
    frame = run("run", stages=stages, **{"training.checkpoint_every": 1}).frame()
    easy = int(frame["groups/all_right"].iloc[:2].sum())
    assert easy > 3
    assert frame["curriculum/dropped"].tolist() == [0, 0, easy, easy]
    assert frame["curriculum/problems"].tolist() == [64, 64, 64 - easy, 64 - easy]
    longer = (*stages, {"name": "third", "steps": 1})
    again = run("run", ("stages", "training.checkpoint_every"), stages=longer).frame()
    assert again["curriculum/dropped"].tolist() == [0, 0, easy, easy, easy]


def test_a_finished_run_is_left_as_it_is(run, tmp_path):
    first = run("run", **{"training.steps": 2})
    before = params_of(tmp_path / "run")
    again = run("run", **{"training.steps": 2})
    assert again.rows == first.rows
    assert_same(before, params_of(tmp_path / "run"))


def test_a_finished_run_says_so_and_goes_on_when_it_is_given_more_steps(run, capsys):
    run("run", **{"training.steps": 2})
    capsys.readouterr()
    run("run", **{"training.steps": 2})
    assert "finished, all 2 steps were done before" in capsys.readouterr().out
    longer, unbroken = run("run", **{"training.steps": 3}), run("unbroken", **{"training.steps": 3})
    assert without_times(longer.rows) == without_times(unbroken.rows)
    assert_same(params_of(longer.workdir), params_of(unbroken.workdir))


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


def test_a_stage_has_data_learning_rate_remat_and_evaluations_of_its_own(run, tmp_path, monkeypatch):
    make_update, remats = loop.make_update, []

    def recorded(model, *args):
        remats.append(model.remat)
        return make_update(model, *args)

    monkeypatch.setattr(loop, "make_update", recorded)
    rows = [{"problem": f"Start with {n}, first +5. What is the result?", "answer": "7"} for n in range(10, 16)]
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = {"data.train": str(path), "optimizer.learning_rate": 2e-4, "model.remat": "full"}
    second |= {"training.evaluate_every": 1, "evaluation.benchmarks": (str(path),)}
    frame = run("run", stages=({"steps": 1}, {"steps": 2} | second)).frame()
    assert frame["curriculum/problems"].tolist() == [64, 6, 6]
    assert frame["update/learning_rate"].tolist() == pytest.approx([1e-2, 2e-4, 2e-4])
    (name,) = [name for name in frame if name.startswith("evaluation/") and name.endswith("avg@2")]
    assert frame[name].notna().tolist() == [False, True, True]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    asked = {row["problem"] for row in rows}
    assert {any(text in s["question"] for text in asked) for s in samples if s["step"] > 1} == {True}
    assert remats == ["none", "full"]
    with pytest.raises(UserError, match="9 a step, but there are 6 problems"):
        run("other", stages=({"steps": 1}, {"steps": 1, "data.train": str(path), "rollout.prompts": 9}))


@pytest.mark.parametrize(("span", "progress"), [("run", (0, 1 / 4, 1 / 2, 3 / 4)), ("stage", (0, 1 / 2, 0, 1 / 2))])
def test_a_schedule_spans_the_run_or_each_stage(run, monkeypatch, span, progress):
    settings = {"stages": ({"steps": 2}, {"steps": 2}), "training.checkpoint_every": 1}
    settings |= {"optimizer.schedule": "cosine", "optimizer.schedule_span": span}
    killed(monkeypatch, loop, "train_step", at=4)
    with pytest.raises(KeyboardInterrupt):
        run("run", **settings)
    rates = run("run", **settings).frame()["update/learning_rate"]
    assert rates.tolist() == pytest.approx([1e-2 * (0.55 + 0.45 * np.cos(np.pi * share)) for share in progress])


def test_another_models_checkpoint_is_refused(run, monkeypatch):
    monkeypatch.setitem(PRESETS, "narrow", PRESETS["tiny"].replace(intermediate_size=64))
    run("run", **{"training.steps": 2})
    with pytest.raises(UserError, match="does not fit the configured model"):
        run("run", ("model",), **{"training.steps": 2, "model.preset": "narrow"})


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
        ({"rollout.top_k": 20}, "config.rollout.top_k: training needs 0, found 20; the trainer's log-probs are over"),
        ({"stages": ({}, {"rollout.top_p": 0.9})}, "config.rollout.top_p: training needs 1, found 0.9"),
        ({"algorithm.loss": "gpro"}, "config.algorithm.loss: expected one of"),
        ({"algorithm.advantage": "men"}, "config.algorithm.advantage: expected one of"),
        ({"stages": ({"temperature": "search"},)}, "config.stages: the first stage needs a number"),
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
    difference = optax.tree.norm(jax.tree.map(np.subtract, left, right))
    assert difference < 1e-3 * optax.tree.norm(right)
