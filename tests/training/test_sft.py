import itertools
import json
import resource
import subprocess
from contextlib import contextmanager, suppress

import jax
import numpy as np
import pytest

from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.training import sft
from polaris_jax.training.metrics import read_metrics
from tests.conftest import killed


def assert_same_params(*workdirs):
    left, right = (hf.load(workdir)[1] for workdir in workdirs)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_sft_learns_and_resumes_to_the_bit(tiny_config, tmp_path, monkeypatch):
    unbroken = sft.run(tiny_config(), tmp_path / "unbroken")
    assert unbroken.rows[-1]["loss"] < unbroken.rows[0]["loss"]
    killed(monkeypatch, sft, "draw", at=4)
    with pytest.raises(KeyboardInterrupt):
        sft.run(tiny_config(), tmp_path / "broken")
    resumed = sft.run(tiny_config(), tmp_path / "broken")
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in unbroken.rows]
    assert_same_params(tmp_path / "broken", tmp_path / "unbroken")


def test_settings_of_grpo_do_not_bend_it(tiny_config, tmp_path):
    grpos = {"kl": 0.5, "aggregation": "constant", "importance_cap": 0.1, "dual_clip": 1.1, "overlong_buffer": 8}
    grpos = {f"algorithm.{key}": value for key, value in grpos.items()}
    grpos |= {"updates.minibatches": 2, "updates.epochs": 2, "rollout.weights": "int8"}
    plain, bent = (sft.run(tiny_config(**changes), tmp_path / name) for name, changes in (("a", {}), ("b", grpos)))
    for name in ("loss", "learning_rate", "grad_norm"):
        assert [row[name] for row in bent.rows] == [row[name] for row in plain.rows]
    sft.run(tiny_config(**grpos), tmp_path / "a")  # nor do they keep a run from being resumed


@contextmanager
def small_disk(path):
    """A file system of 24 MB, where this user may mount; yields what fills it and what makes room again."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")

    def fill():
        with (path / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))

    try:
        yield fill, (path / "ballast").unlink
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def small_files(path):
    """The same with a limit on the size of files, which everybody may set."""
    path.mkdir()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield (
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's writer
@pytest.mark.parametrize("disk", [small_disk, small_files])
def test_a_run_outlives_a_full_disk(tiny_config, tmp_path, monkeypatch, caplog, disk):
    """Full from the second step to the fourth, in which a checkpoint was due; it is saved after the fifth."""
    config = tiny_config(**{"sft.steps": 6, "sft.checkpoint_every": 3, "training.keep": 1})
    unbroken = sft.run(config, tmp_path / "unbroken")
    draw, step = sft.draw, itertools.count(1)
    saved = []
    with disk(tmp_path / "disk") as (fill, make_room):

        def at_each_step(*args, **settings):
            now = next(step)
            if now == 2:
                fill()
            if now == 5:
                make_room()
            saved.append(sorted(path.name for path in tmp_path.glob("disk/run/checkpoints/*") if path.name.isdigit()))
            return draw(*args, **settings)

        monkeypatch.setattr(sft, "draw", at_each_step)
        history = sft.run(config, tmp_path / "disk" / "run")
        assert [row["loss"] for row in history.rows] == [row["loss"] for row in unbroken.rows]
        assert [row["step"] for row in read_metrics(tmp_path / "disk" / "run")] == [1, 2, 3, 4, 5, 6]
        assert saved[:5] == [[]] * 5
        assert "3: not saved" in caplog.text
        assert "4: not saved" in caplog.text
        assert "5: not saved" not in caplog.text
        assert_same_params(tmp_path / "disk" / "run", tmp_path / "unbroken")


def test_a_file_of_conversations_is_learnt(tiny_config, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Start with 37, first +5"}, {"role": "assistant", "content": "42"}]}
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    history = sft.run(tiny_config(**{"sft.data": str(path)}), tmp_path / "run")
    assert len(history.rows) == 4
    with pytest.raises(UserError, match=r"config.sft.batch_size: 9 an update, but there are 8 conversations"):
        sft.run(tiny_config(**{"sft.data": str(path), "sft.batch_size": 9}), tmp_path / "other")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sft.data": ""}, "config.sft.data: empty"),
        ({"sft.data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"updates.row_lengths": (32,)}, "config.updates.row_lengths: the longest is 32"),
    ],
)
def test_bad_input_is_refused_in_words_before_anything_is_written(tiny_config, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        sft.run(tiny_config(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
