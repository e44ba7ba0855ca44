"""Every command of the README runs as it stands after `make demo`: to its end, or to where it would compile."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from polaris_jax import hf
from polaris_jax.data import arithmetic
from polaris_jax.runs.start import load_model, load_tokenizer, save_model_files
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState
from polaris_jax.training.state import init_state
from tests.conftest import CONFIGS, run_script, smaller_config

ROOT = CONFIGS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "".join(re.findall(r"^    .*\n", README, re.MULTILINE)).replace("\\\n", " ")
COMMANDS = [re.split(r" #|>|&&", line)[0].strip() for line in CODE.splitlines() if line.startswith("    python ")]
CONVERSATIONS = arithmetic.conversations
ON_THE_HUB = ("Qwen/Qwen3-4B", "configs/polaris_4b.py")  # which names it


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory):
    """A checkout in which the demo has trained: what it leaves that the README's commands read."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch", "experiments"):
        (checkout / name).symlink_to(ROOT / name)
    config = smaller_config()
    mesh, tokenizer = make_mesh(config.mesh), load_tokenizer(config)
    model, params = load_model(config, mesh, tokenizer)
    state = init_state(model, config, mesh, params)
    for name in ("sft", "rl"):
        workdir = checkout / "runs" / "demo" / name
        workdir.mkdir(parents=True)
        with Checkpoints(workdir, config.training) as checkpoints:
            checkpoints.save(state, HostState())
        save_model_files(workdir, model, tokenizer)
    return checkout


def test_there_are_commands_of_every_kind():
    scripts = {shlex.split(command)[1] for command in COMMANDS}
    named = ("sft", "train", "polaris", "plan", "evaluate", "temperature", "export_hf", "import_hf")
    assert {f"experiments/{name}.py" for name in named} | {"launch/render.py"} <= scripts


def test_the_demo_makes_what_the_commands_read():
    demo = (ROOT / "experiments" / "demo.py").read_text(encoding="utf-8")
    assert "--workdir=runs/demo" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"runs/demo/(\w+)", README)) == {"sft", "rl"}
    for name in ("sft", "rl"):
        assert f'workdir / "{name}"' in demo


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs_as_it_stands(command, after_demo, monkeypatch):
    monkeypatch.chdir(after_demo)
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    monkeypatch.setattr(arithmetic, "conversations", lambda count, *rest: CONVERSATIONS(min(count, 64), *rest))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("polaris_jax.plan.planner.plan", lambda *_, **__: sys.exit())  # its search has its own tests
    _, script, *flags = shlex.split(command)
    if "--source=exports/tiny" in flags:  # which the command before it makes, behind its first compilation
        hf.export_model("runs/demo/rl", "exports/tiny")
    outcome = run_script(Path("..") / Path(script).with_suffix(""), *flags)
    if script != "experiments/plan.py" and any(name in command for name in ON_THE_HUB):
        assert "the Hugging Face hub is not reachable" in outcome.err
    else:
        assert outcome.code in (None, 0), outcome.err


def test_makes_targets_and_paths_in_code_are_there(after_demo):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for path in re.findall(r'"(runs/demo/\w+|configs/\w+\.py)"', CODE):
        assert (after_demo / path).exists()
