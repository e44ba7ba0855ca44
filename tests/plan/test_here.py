"""What a job will need is told before it starts, with what to lower where it is too much."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from polaris_jax.data import arithmetic
from polaris_jax.data.problems import SUFFIX
from polaris_jax.plan import here
from polaris_jax.plan.memory import parameter_bytes, phase_memory, plan_mesh
from polaris_jax.plan.planner import model_shape
from tests.conftest import refusal, run_script, smaller_config

ROOT = Path(__file__).parents[2]


def test_it_is_the_fullest_phase_of_all_stages():
    rows = {"updates.row_lengths": (64, 4096), "updates.rows": 1}
    config = smaller_config(**rows, stages=({"steps": 1}, {"steps": 1, "updates.row_lengths": (8192,)}))
    longest = smaller_config(**rows | {"updates.row_lengths": (8192,)})
    memory = phase_memory(model_shape(longest), longest, plan_mesh(longest.mesh, 1), "cpu")
    size, phase = max((sum(parts.values()), phase) for phase, parts in memory.items())
    assert phase == "gradients"
    assert here.needs(config, "GRPO") == (pytest.approx(here.PROGRAM + size), phase)
    assert here.memory_line(config, "GRPO").endswith("GiB, most of it in gradients")


def test_an_evaluation_needs_no_moments_and_its_own_pages():
    config = smaller_config()
    small, phase = here.needs(config, "evaluation")
    assert phase in here.SAMPLING
    assert small <= here.needs(config, "GRPO")[0] - 2 * parameter_bytes(
        model_shape(config), plan_mesh(config.mesh, 1), 4
    )
    longer = smaller_config(**{"evaluation.max_response_tokens": 4096})
    assert here.needs(longer, "evaluation")[0] - here.PROGRAM > 2 * (small - here.PROGRAM)
    assert here.needs(longer, "GRPO") == here.needs(config, "GRPO")


def test_sft_samples_nothing_and_has_a_batch_of_its_own():
    config = smaller_config(**{"rollout.slots": 100_000, "sft.batch_size": 8})
    size, phase = here.needs(config, "SFT")
    assert phase in here.TRAINING
    assert here.needs(smaller_config(**{"sft.batch_size": 80_000}), "SFT")[0] > size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout.slots": 2**20}, "in prefill; that does not fit: lower config.rollout.slots"),
        ({"updates.rows": 2**20}, "in gradients; that does not fit: lower config.updates.rows"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_lower(monkeypatch, changes, words):
    monkeypatch.setattr(here, "capacity", lambda: 24.0 * 2**30)
    line = here.memory_line(smaller_config(**changes), "GRPO")
    assert words in line or words.replace("prefill", "decode") in line
    assert re.match(r"memory: about [\d.]+ of 24\.0 GiB", line)


def test_scripts_say_it_and_leave_mistakes_to_the_job(tmp_path):
    tiny = ("--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}")
    assert re.search(r"^memory: about 0\.\d of [\d.]+ GiB", run_script("train", *tiny).out, re.MULTILINE)
    assert "no such directory" in refusal("train", *tiny, "--config.model.path=nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["evaluation", "GRPO"])
def test_the_figure_is_what_the_process_takes(job, tmp_path):
    """Of an untrained float32 model of 150M parameters, whose sampler and trainer share their weights."""
    pytest.importorskip("torch")
    tokenizer = arithmetic.build_tokenizer(SUFFIX)
    shape = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=16, num_attention_heads=12)
    settings = Qwen2Config(vocab_size=32_000, num_key_value_heads=4, eos_token_id=tokenizer.eos_token_id, **shape)
    Qwen2ForCausalLM(settings).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    keys = {"model.path": f"{tmp_path}/model", "model.preset": "", "model.tokenizer": "", "model.remat": "full"}
    keys |= {"training.steps": 2, "training.evaluate_every": 0, "updates.rows": 1, "rollout.slots": 4}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    where = {"evaluation": ["evaluate", f"--output={tmp_path}/found"], "GRPO": ["train", f"--workdir={tmp_path}/run"]}
    (script, out), config = where[job], f"--config={ROOT}/configs/tiny.py"
    command = [sys.executable, f"{ROOT}/experiments/{script}.py", config, out, *flags]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    told = re.search(r"^memory: about ([\d.]+) of", done.stdout.read(), re.MULTILINE)
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0
    assert float(told[1]) == pytest.approx(usage.ru_maxrss / 2**20, rel=0.15)
