"""Runs with rewards of one's own and with several sources: what is learnt from, what is counted, and exact resume."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from polaris_jax.errors import UserError
from polaris_jax.training import loop
from tests.conftest import CONFIGS, killed, refusal
from tests.training.test_loop import assert_same, params_of, without_times

MINE = """
def even(response, problem):
    return float(len(response) % 2 == 0)

def picky(response, problem):
    if len(response) % 3 == 0:
        raise ValueError(response)
    return -1.0
"""


@pytest.fixture
def run(tiny_config, tmp_path):
    """Runs the loop with the real verifier; the random model is never right."""

    def start(name, allow_changed=(), **overrides):
        return loop.run(tiny_config(**overrides), tmp_path / name, allow_changed=allow_changed)

    return start


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    named = (
        ("verify", 1.0),
        (f"{tmp_path}/mine.py:even", 0.5),
        (f"{tmp_path}/mine.py:picky", 0.25),
        ("kimi_length", 1.0),
    )
    return {"reward.functions": named}


def test_advantages_are_of_the_sum_and_pass_rates_of_what_is_right(run, functions, tmp_path, monkeypatch):
    unbroken = run("unbroken", **functions)
    frame = unbroken.frame()
    assert (frame.accuracy == 0).all()
    assert (frame["groups/all_wrong"] == 4).all()
    assert (frame["reward/verify"] == 0).all()
    assert (frame["update/grad_norm"] > 0).any()  # of rewards that differ, although all are wrong
    assert frame["reward/even"].between(0.1, 0.9).any()
    assert (frame["reward/even_failed"] == 0).all()
    failed = frame["reward/picky_failed"]
    assert (failed > 0).any()
    np.testing.assert_allclose(frame["reward/picky"], failed / 16 - 1)
    weighted = 0.5 * frame["reward/even"] + 0.25 * frame["reward/picky"] + frame["reward/kimi_length"]
    np.testing.assert_allclose(frame.reward, weighted, atol=1e-6)
    assert (frame["source/arithmetic/reward"] == frame.reward).all()

    # A run that is killed and resumes, and one whose newest step's rewards were kept on the disk, are the same run.
    killed(monkeypatch, loop, "log_samples", at=3)
    with pytest.raises(KeyboardInterrupt):
        run("broken", **functions)
    resumed = run("broken", **functions)
    assert without_times(resumed.rows) == without_times(unbroken.rows)
    assert_same(params_of(tmp_path / "broken"), params_of(tmp_path / "unbroken"))


def test_other_rewards_and_a_changed_file_are_refused_and_noted(run, functions, tmp_path):
    two = {"training.steps": 2} | functions
    run("run", **two)
    noted = json.loads((tmp_path / "run" / "reward_files.json").read_text())
    assert [entry["step"] for entry in noted] == [0]
    with pytest.raises(UserError, match=r"config.reward.functions: .* -> "):
        run("run", **two | {"reward.functions": (("verify", 1.0),)})
    (tmp_path / "mine.py").write_text(MINE.replace("== 0)", "== 1)"))
    with pytest.raises(UserError, match=r"mine.py has changed since the run began"):
        run("run", **two)
    run("run", ("reward.functions",), **two | {"training.steps": 3})
    noted = json.loads((tmp_path / "run" / "reward_files.json").read_text())
    assert [entry["step"] for entry in noted] == [0, 2]
    assert noted[0]["sha256"].keys() == noted[1]["sha256"].keys() == {"mine.py"}
    assert noted[0] != noted[1] | {"step": 0}
    (tmp_path / "mine.py").write_text("import no_such_module")
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        run("other", **two)


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ("(('verfy', 1.0),)", "no function 'verfy'; expected one of verify, format, repetition"),
        ("(('verify', 1.0), ('nowhere.py:f', -0.2))", "nowhere.py: cannot be read"),
        ("('verify',)", "expected pairs (function, weight)"),
        ("()", "expected pairs (function, weight)"),
    ],
)
def test_functions_on_the_command_line_are_checked_before_anything_is_compiled(tmp_path, functions, said):
    config = f"--config={CONFIGS / 'tiny.py'}"
    assert said in refusal("train", config, f"--workdir={tmp_path}/run", f"--config.reward.functions={functions}")


def places_of(workdir):
    """Epoch and position of each source in the newest checkpoint."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("host",)) as checkpoints:
        args = ocp.args.Composite(host=ocp.args.JsonRestore())
        return checkpoints.restore(checkpoints.latest_step(), args=args)["host"]["curriculum"]["places"]


def test_several_sources_keep_their_shares_and_resume_to_the_bit(run, tmp_path, monkeypatch):
    for name in "ab":
        rows = [{"problem": f"Start with {n}, first +{len(name)}. What is the result?", "answer": "7",
                 "data_source": "others"} for n in range(10, 40) if (n % 2 == 0) == (name == "a")]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix = {"data.mix": ((f"{tmp_path}/a.jsonl", 0.75), (f"{tmp_path}/b.jsonl", 0.25)), "data.train": ""}
    unbroken = run("unbroken", **mix)
    frame = unbroken.frame()
    assert {"source/a/accuracy", "source/b/accuracy", "source/a/reward"} <= set(frame.columns)
    places = places_of(tmp_path / "unbroken")
    assert sum(position for _, position in places.values()) == 16
    assert places["a"][1] == pytest.approx(12, abs=2)
    killed(monkeypatch, loop, "train_step", at=4)
    with pytest.raises(KeyboardInterrupt):
        run("broken", **mix)
    resumed = run("broken", **mix)
    assert without_times(resumed.rows) == without_times(unbroken.rows)
    assert places_of(tmp_path / "broken") == places
