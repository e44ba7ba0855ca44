"""The demo as a user runs it: reinforcement learning works in it, and where it does not, it says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def demo(workdir, *overrides):
    command = [sys.executable, "experiments/demo.py", f"--workdir={workdir}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done, json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_grpo_lifts_accuracy_and_length(tmp_path):
    done, found = demo(tmp_path)
    assert (done.returncode, found["shortfalls"]) == (0, []), done.stdout
    assert 0.15 <= found["accuracy_sft"] <= 0.5
    assert found["accuracy_rl"] >= max(0.75, found["accuracy_sft"] + 0.35)
    assert found["length_rl"] >= 1.2 * found["length_sft"]
    assert "What to type next" in done.stdout


@pytest.mark.slow
def test_a_demo_that_learns_nothing_fails_and_says_why(tmp_path):
    short = ("sft.steps=4", "sft.batch_size=4", "training.steps=1", "rollout.prompts=2", "evaluation.max_problems=4")
    done, found = demo(tmp_path, *(f"--config.{setting}" for setting in short))
    assert done.returncode == 1
    assert found["shortfalls"]
    assert all(sentence in done.stdout for sentence in found["shortfalls"])
