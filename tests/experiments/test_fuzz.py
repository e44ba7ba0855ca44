"""Whatever config or data a script is given, it refuses them in one line with exit code 2, or is about to compile."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from polaris_jax.config import flatten
from tests.conftest import run_script

TINY = f"--config={Path(base.__file__).parent}/tiny.py"
KEYS = [key for key, _ in flatten(base.get_config())]
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["arithmetic", "tiny", "x" * 300, "no/such", "a/b:c", "../..", ".", "{", "grpo", "0"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 3, 2**31, 10**30, float("nan"), float("inf")])
SCALARS = NUMBERS | TEXTS | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
OVERRIDES = st.dictionaries(
    st.sampled_from(KEYS) | st.builds(lambda key, i: key[:i] + key[i + 1 :], st.sampled_from(KEYS), st.integers(0, 20)),
    VALUES | st.lists(VALUES, max_size=3).map(tuple) | st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES)),
    min_size=1,
    max_size=2,
)
COLUMNS = ("problem", "question", "prompt", "answer", "answers", "reward_model", "messages", "responses", "difficulty")
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS) | TEXTS, VALUES, max_size=4) | VALUES, max_size=3)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", 3]), "content": VALUES}))
CHATS = st.lists(st.fixed_dictionaries({"messages": MESSAGES}), max_size=2)
DAMAGES = st.tuples(st.sampled_from(["cut", "flip"]), st.integers(0, 4000)) | st.binary(max_size=40)


def damaged(content, damage):
    """The bytes cut, with one changed, or replaced."""
    if isinstance(damage, bytes):
        return damage
    kind, place = damage
    place %= len(content) + 1
    return content[:place] + (b"" if kind == "cut" else bytes([255 - part for part in content[place : place + 1]])
                              + content[place + 1 :])  # fmt: skip


def assert_refused_or_accepted(script, *flags):
    code, _, err = run_script(script, *flags)
    if code == 2:
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert len(err) > 20
    else:
        assert code in (None, 0)


@pytest.fixture(scope="module", autouse=True)
def few_problems_and_no_hub():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 16)
        monkeypatch.setattr("polaris_jax.evaluation.job.ARITHMETIC_PROBLEMS", 16)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        yield


def overrides(script, changes):
    with tempfile.TemporaryDirectory() as directory:
        output = "output" if script in ("evaluate", "difficulty", "temperature") else "workdir"
        flags = [f"--config.{key}={value!r}" for key, value in changes.items()]
        small = ("--config.sft.steps=2", "--config.sft.batch_size=2", "--config.evaluation.max_problems=4")
        assert_refused_or_accepted(script, TINY, *small, *flags, f"--{output}={directory}/run")


def write_rows(path, rows, damage):
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if damage is not None:
        path.write_bytes(damaged(path.read_bytes(), damage))


def data(script, name, rows, damage):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        try:
            write_rows(path, rows, damage)
        except Exception:  # pandas and arrow cannot write every table
            return
        source = {"train": "--config.data.train", "sft": "--config.sft.data", "evaluate": "--responses"}[script]
        flags = ["--config.rollout.prompts=1", "--config.sft.batch_size=1", f"{source}={path}"]
        output = "output" if script == "evaluate" else "workdir"
        assert_refused_or_accepted(script, TINY, *flags, f"--{output}={directory}/run")


SCRIPTS = st.sampled_from(["train", "sft", "polaris", "difficulty", "evaluate", "temperature"])
NAMES = st.sampled_from(["rows.jsonl", "rows.json", "rows.parquet"])
READERS = st.sampled_from(["train", "sft", "evaluate"])


@settings(max_examples=40, deadline=None)
@given(SCRIPTS, OVERRIDES)
def test_overrides(script, changes):
    overrides(script, changes)


@settings(max_examples=25, deadline=None)
@given(READERS, NAMES, ROWS | CHATS, st.none() | DAMAGES)
def test_rows(script, name, rows, damage):
    data(script, name, rows, damage)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(SCRIPTS, OVERRIDES)
def test_many_overrides(script, changes):
    overrides(script, changes)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(READERS, NAMES, ROWS | CHATS, st.none() | DAMAGES)
def test_many_rows(script, name, rows, damage):
    data(script, name, rows, damage)
