"""The commands of "Train your own Hugging Face model" on a small Qwen2 with its config."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from polaris_jax.data import arithmetic
from polaris_jax.data.problems import SUFFIX
from tests.conftest import run_script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
COMMANDS = [
    "".join(found).replace("\\\n", " ") for found in re.findall(r"^    python (?:.*\\\n)*.*\n", PAGE, re.MULTILINE)
]
SHORTER = {  # what makes the commands quick, and leaves all else to the page and its config
    "train": ("training.steps=2", "training.evaluate_every=2", "rollout.prompts=4", "rollout.samples=4"),
    "evaluate": ("evaluation.samples=2",),
}
SHORTER_BOTH = ("rollout.max_response_tokens=16", "evaluation.max_response_tokens=16", "model.dtype=float32")


@pytest.fixture(scope="module")
def with_a_model(tmp_path_factory):
    """A directory with models/mine, which transformers wrote, problems.jsonl and held_out.jsonl."""
    directory = tmp_path_factory.mktemp("mine")
    for name in ("configs", "experiments"):
        (directory / name).symlink_to(ROOT / name)
    tokenizer = arithmetic.build_tokenizer(SUFFIX)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=2048)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=192, eos_token_id=tokenizer.eos_token_id, **shape))
    model.save_pretrained(directory / "models" / "mine")
    tokenizer.save_pretrained(directory / "models" / "mine")
    for name, kind, count in (("problems", "train", 32), ("held_out", "test", 4)):
        problems = arithmetic.problems(kind, count, SUFFIX, 0)
        rows = [{"problem": p.question.removesuffix(SUFFIX).strip(), "answer": p.answers[0]} for p in problems]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def named(script):
    return [shlex.split(command) for command in COMMANDS if f"experiments/{script}.py" in command]


def test_the_page_goes_from_evaluation_to_export():
    scripts = [Path(shlex.split(command)[1]).stem for command in COMMANDS]
    assert scripts == ["evaluate", "train", "evaluate", "evaluate", "export_hf", "import_hf"]


@pytest.mark.parametrize("command", [named("evaluate")[0], *named("train"), *named("import_hf")], ids=lambda c: c[1])
def test_what_needs_only_the_model_runs_as_it_stands(command, with_a_model, monkeypatch):
    monkeypatch.chdir(with_a_model)
    outcome = run_script(Path(command[1]).stem, *command[2:])
    assert outcome.code in (None, 0), outcome.err
    if "import" not in command[1]:
        assert re.search(r"^memory: about [\d.]+ of [\d.]+ GiB, most of it in", outcome.out, re.MULTILINE)


@pytest.mark.slow
def test_every_command_in_turn_to_a_model_that_transformers_loads(with_a_model):
    for command in map(shlex.split, COMMANDS):
        script = Path(command[1]).stem
        changes = (*SHORTER[script], *SHORTER_BOTH) if script in SHORTER else ()
        flags = [f"--config.{change}" for change in changes] if "--config=" in " ".join(command) else []
        done = subprocess.run(
            [sys.executable, *command[1:], *flags], cwd=with_a_model, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (with_a_model / "runs" / "mine" / "training.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (with_a_model / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert "evaluation/held_out.jsonl/avg@4" in rows[1]
    (comparison,) = json.loads((with_a_model / "evals" / "comparison" / "comparison.json").read_text())[1:]
    assert comparison["gain"] is not None
    trained, given = (
        AutoModelForCausalLM.from_pretrained(with_a_model / name) for name in ("exports/mine", "models/mine")
    )
    assert trained.config.hidden_size == given.config.hidden_size
