"""What all tests share: compiled programs are kept for the session, and a tiny config."""

import itertools
import os
import runpy
import sys
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from absl import app, flags

from polaris_jax import cli  # noqa: F401 (its flags are every script's, not of the one that is run first)
from polaris_jax import config as configs
from polaris_jax.rewards import Reason, Verdict

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory, worker_id):
    """Programs that several tests compile are compiled once, by whichever process of pytest or a test is the first."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "compiled"
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(directory), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


ACCELERATOR = ("ops", "rollout", "gpu_check", "optim/test_pieces.py", "plan/test_ahead.py")


def pytest_collection_modifyitems(items):
    """Marks the tests of what accelerators run: kernels, compiling ahead of time, the engine."""
    rooms = [Path(__file__).parent / room for room in ACCELERATOR]
    for item in items:
        if any(item.path.is_relative_to(room) for room in rooms):
            item.add_marker("accelerator")


SMALLER = {
    "rollout.prompts": 4,
    "rollout.samples": 4,
    "rollout.max_response_tokens": 24,
    "rollout.slots": 16,
    "rollout.tokens_per_call": 8,
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 0,
    "updates.rows": 8,
    "sft.steps": 4,
    "sft.checkpoint_every": 2,
    "sft.batch_size": 8,
    "evaluation.max_problems": 4,
    "evaluation.samples": 2,
    "evaluation.max_response_tokens": 24,
}


def smaller_config(**overrides):
    """The tiny config, made smaller still: 4 prompts x 4 samples of at most 24 tokens."""
    return configs.load(CONFIGS / "tiny.py", SMALLER | overrides)


@pytest.fixture
def tiny_config(monkeypatch):
    """`smaller_config`, with few problems."""
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    return smaller_config


class EvenLengthPool:
    """Stands in for the verifier where a random model must earn something: a response of even length is right."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def state(self):
        return {}

    def submit(self, response, answer):
        future = Future()
        correct = len(response) % 2 == 0
        future.set_result(Verdict(correct, Reason.EQUAL if correct else Reason.UNEQUAL))
        return future


@pytest.fixture
def even_length_pool(monkeypatch):
    """Makes the training loop reward responses of even length."""
    monkeypatch.setattr("polaris_jax.training.loop.verifier_pool", lambda config: EvenLengthPool())


class FirstCompile(Exception):
    """Ends a script run by `run_script`: all its checks were passed, and it would now compile."""


class Outcome(NamedTuple):
    """code: the exit code, None where the first compile was reached. out, err: what was printed."""

    code: int | None
    out: str
    err: str


_stopping = False
app.define_help_flags()
EVERY_SCRIPTS_FLAGS = set(flags.FLAGS)


def killed(monkeypatch, module, name, at):
    """Makes the module's function of that name raise KeyboardInterrupt at its `at`-th call, once."""
    function, count = getattr(module, name), itertools.count(1)

    def interrupted(*args, **settings):
        if next(count) == at:
            raise KeyboardInterrupt
        return function(*args, **settings)

    monkeypatch.setattr(module, name, interrupted)


def _stop_at_first_compile(event, duration, **_):
    if _stopping and event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        raise FirstCompile


jax.monitoring.register_event_duration_secs_listener(_stop_at_first_compile)


def run_script(name, *args):
    """Runs experiments/NAME.py in this process until it ends or is about to compile something. Returns an Outcome."""
    global _stopping
    argv, code = sys.argv, None
    # Scripts that the tests import have flags too, and names of them may be this script's as well.
    others = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - EVERY_SCRIPTS_FLAGS}
    for flag in others:
        delattr(flags.FLAGS, flag)
    sys.argv = [name, *map(str, args)]
    _stopping = True
    try:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            runpy.run_path(str(CONFIGS.parent / "experiments" / f"{name}.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except FirstCompile:
        pass
    finally:
        _stopping, sys.argv = False, argv
        for flag in set(flags.FLAGS) - EVERY_SCRIPTS_FLAGS:
            delattr(flags.FLAGS, flag)
        for flag, definition in others.items():
            flags.FLAGS[flag] = definition
    return Outcome(code, out.getvalue(), err.getvalue())


def refusal(name, *args):
    """The message with which a script refuses its input: one line on stderr, exit code 2, nothing compiled."""
    code, _, err = run_script(name, *args)
    assert code == 2, f"exit code {code}; {err}"
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err
