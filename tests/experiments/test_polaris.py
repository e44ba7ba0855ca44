"""The one command: killed in the middle of every phase and started again, it ends like the run that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.data.problems import SUFFIX, load_problems

ROOT = Path(__file__).parents[2]
CONFIG = """
from configs import tiny_stages

def get_config():
    c = tiny_stages.get_config()
    c.sft.data, c.sft.shuffle = "{directory}/traces.jsonl", True
    c.sft.steps, c.sft.checkpoint_every = 120, 40
    c.data.train = "{directory}/problems.jsonl"
    c.rollout.prompts, c.rollout.samples, c.rollout.slots = 8, 4, 16
    c.training.checkpoint_every = 2
    c.difficulty.problems, c.difficulty.samples = 24, 4
    c.search.problems, c.search.samples, c.search.highest = 2, 4, 1.1
    c.evaluation.benchmarks = ("{directory}/problems.jsonl",)
    c.evaluation.max_problems, c.evaluation.samples, c.evaluation.max_response_tokens = 16, 2, 24
    c.stages = (
        dict(name="short", steps=3, temperature=1.0, max_response_tokens=20),
        dict(name="long", steps=3, temperature="search", max_response_tokens=24),
    )
    return c
"""


def write_inputs(directory):
    """Problems whose answers look like the throw of a coin, and traces that guess one: soon half of the guesses hit."""
    rng = Random(0)
    questions = [
        f"Start with {start}, first +{n}. What is the result?" for start in range(10, 50) for n in range(1, 10)
    ]
    problems = [{"problem": question, "answer": str(rng.randint(12, 13))} for question in questions]
    rng.shuffle(problems)
    response = "<think> {0}.</think>\nThe answer is \\boxed{{{0}}}"
    traces = [
        {
            "messages": [
                {"role": "user", "content": f"{problem['problem']} {SUFFIX}"},
                {"role": "assistant", "content": response.format(rng.randint(12, 13))},
            ]
        }
        for problem in problems
    ]
    for name, rows in (("problems", problems), ("traces", traces)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.py").write_text(CONFIG.format(directory=directory))


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


# Phase -> whether it is in its middle. Checkpoints lie before the points where SFT and training are stopped.
MIDDLES = {
    "sft": lambda workdir: lines(workdir / "sft" / "metrics.jsonl") >= 60,
    "difficulty": lambda workdir: lines(workdir / "difficulty" / "pass_rates.jsonl") >= 5,
    "train": lambda workdir: lines(workdir / "train" / "metrics.jsonl") >= 5,
    "evaluation": lambda workdir: lines(workdir / "evaluation" / "responses.jsonl") >= 5,
    "export": lambda workdir: any(workdir.glob(".export.*")),
}


def start(tmp_path, name):
    command = [sys.executable, "experiments/polaris.py", f"--config={tmp_path / 'config.py'}"]
    with (tmp_path / f"{name}.log").open("ab") as log:
        return subprocess.Popen([*command, f"--workdir={tmp_path / name}"], cwd=ROOT, stdout=log, stderr=log)


def run_to_the_end(tmp_path, name):
    assert start(tmp_path, name).wait() == 0, (tmp_path / f"{name}.log").read_text()


def kill_in_the_middle(tmp_path, phase):
    workdir, process = tmp_path / "broken", start(tmp_path, "broken")
    while not MIDDLES[phase](workdir):
        assert process.poll() is None, (tmp_path / "broken.log").read_text()
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (workdir / "done" / f"{phase}.json").exists()


def without_times(path):
    timed = ("_s", "seconds", "compilations", "peak_share", "device_hours")
    rows = map(json.loads, path.read_text().splitlines())
    here = ("seconds", "rollout/")  # what the engine did: nothing, where the rollouts were kept from an earlier start
    return [{k: v for k, v in row.items() if not (k.startswith(here) or k.endswith(timed))} for row in rows]


@pytest.mark.slow
def test_killed_in_each_phase_it_ends_like_the_unbroken_run(tmp_path):
    write_inputs(tmp_path)
    run_to_the_end(tmp_path, "unbroken")
    for phase in MIDDLES:
        kill_in_the_middle(tmp_path, phase)
    run_to_the_end(tmp_path, "broken")
    one, other = tmp_path / "unbroken", tmp_path / "broken"
    for phase in ("sft", "train"):
        assert without_times(one / phase / "metrics.jsonl") == without_times(other / phase / "metrics.jsonl")
        jax.tree.map(np.testing.assert_array_equal, hf.load(one / phase)[1], hf.load(other / phase)[1])
    for name in ("measured", "kept"):
        assert load_problems(one / "difficulty" / name) == load_problems(other / "difficulty" / name)
    scores = [json.loads((path / "evaluation" / "scores.json").read_text())["scores"] for path in (one, other)]
    assert scores[0] == scores[1]
    for path in sorted((one / "export").iterdir()):
        assert path.read_bytes() == (other / "export" / path.name).read_bytes(), path.name
    rows = without_times(one / "train" / "metrics.jsonl")
    assert [row["stage"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert any(row["groups/mixed"] for row in rows)
    assert any(row["groups/substituted"] for row in rows)


@pytest.mark.slow
def test_a_finished_workdir_is_left_alone_and_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, "experiments/polaris.py", "--config=configs/tiny_stages.py", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*command, "--config.difficulty.kep=1"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean" in done.stderr or "keep" in done.stderr
