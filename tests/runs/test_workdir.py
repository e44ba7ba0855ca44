"""A run's directory: one run at a time, writable, and not another config's."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from polaris_jax.errors import UserError
from polaris_jax.evaluation import difficulty, job, probe
from polaris_jax.runs import workdir
from polaris_jax.runs.workdir import FREE, check_config, hold, write_config
from polaris_jax.training import loop, recipe, sft

RESPONSES = Path(__file__).parents[1] / "evaluation" / "responses.parquet"


def judge(config, output):
    return job.judge_file(RESPONSES, config, output)


@pytest.mark.parametrize("run", [loop.run, sft.run, recipe.run, difficulty.run, job.run, probe.run, judge])
def test_a_directory_has_one_run_at_a_time(tiny_config, tmp_path, run):
    held = tmp_path / "run"
    with hold(held), pytest.raises(UserError, match=r"run: held by another run, process \d+ on .+ since 20.+; wait"):
        run(tiny_config(), held)


def test_a_killed_run_leaves_no_stale_lock(tmp_path):
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{program}; time.sleep(60)", tmp_path / "lock"], stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(UserError, match="held by another run"), hold(tmp_path):
        pass
    other.kill()
    other.communicate()
    with hold(tmp_path):
        assert (tmp_path / "lock").read_text().startswith("process ")


def test_a_directory_in_which_nothing_was_written_goes_again(tmp_path):
    with hold(tmp_path / "run") as held:
        assert held.is_dir()
    assert not held.exists()
    with hold(held):
        (held / "metrics.jsonl").touch()
    assert held.exists()


@contextmanager
def read_only_disk(path):
    """A file system mounted read-only, where this user may mount."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", path], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_directory_that_cannot_be_written_is_refused(tiny_config, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match=f"{path}: cannot be written: "):
            loop.run(tiny_config(), path)
    with read_only_disk(tmp_path / "disk") as disk:
        for path in (disk, disk / "run"):
            with pytest.raises(UserError, match=f"{path}: cannot be written: Read-only file system"):
                loop.run(tiny_config(), path)


def test_what_differs_is_shown_and_refused_where_it_would_change_the_run(tiny_config, tmp_path):
    write_config(tiny_config(), tmp_path)
    check_config(tiny_config(), tmp_path)
    other = tiny_config(**{"optimizer.learning_rate": 0.5, "rollout.samples": 6, "training.keep": 5})
    with pytest.raises(UserError) as refused:
        check_config(other, tmp_path)
    assert "config: config.optimizer.learning_rate: 0.01 -> 0.5; config.rollout.samples: 4 -> 6; give" in str(
        refused.value
    )
    assert str(refused.value).endswith("--allow_changed=optimizer.learning_rate,rollout.samples")
    with pytest.raises(UserError, match=r"another config: config.rollout.samples: 4 -> 6; give"):
        check_config(other, tmp_path, allowed=["optimizer"])
    check_config(other, tmp_path, allowed=["optimizer", "rollout.samples"])
    with pytest.raises(UserError, match=r"--allow_changed=rollout.smaples: no such key; did you mean"):
        check_config(other, tmp_path, allowed=["rollout.smaples"])


def test_what_does_not_change_the_run_may_differ_and_is_told(tiny_config, tmp_path, caplog):
    write_config(tiny_config(), tmp_path)
    values = {int: 7, float: 7.0, str: "reward"}
    known = dict(workdir.configs.flatten(tiny_config()))
    check_config(tiny_config(**{key: values[type(known[key])] for key in FREE}), tmp_path)
    assert len(caplog.messages) == len(FREE)
    assert any("resumes with config.training.keep: 2 -> 7" in text for text in caplog.messages)


STAGES = ({"name": "a", "steps": 2}, {"name": "b", "steps": 3})


@pytest.mark.parametrize(
    ("key", "old", "new", "goes_on"),
    [
        ("training.steps", 4, 6, True),
        ("training.steps", 4, 3, False),
        ("sft.steps", 4, 6, True),
        ("stages", STAGES, (STAGES[0], {"name": "b", "steps": 5}), True),
        ("stages", STAGES, (*STAGES, {"name": "c", "steps": 1}), True),
        ("stages", STAGES, ({"name": "a", "steps": 3}, STAGES[1]), False),
        ("stages", STAGES, (STAGES[0], {"name": "b", "steps": 5, "temperature": 0.5}), False),
        ("stages", STAGES, STAGES[:1], False),
        ("stages", (), STAGES, False),
    ],
)
def test_a_run_may_be_given_more_steps_and_stages_but_no_other_ones(tiny_config, tmp_path, key, old, new, goes_on):
    write_config(tiny_config(**{key: old}), tmp_path)
    with nullcontext() if goes_on else pytest.raises(UserError, match=f"another config: config.{key}: "):
        check_config(tiny_config(**{key: new}), tmp_path)
    with pytest.raises(UserError, match=f"another config: config.{key}: "):
        check_config(tiny_config(**{key: new}), tmp_path, growing=())


def test_a_config_of_before_a_key_was_added_has_its_default(tiny_config, tmp_path):
    write_config(tiny_config(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"top_k": 0,', "", 1))
    check_config(tiny_config(), tmp_path)
    with pytest.raises(UserError, match=r"config.rollout.top_k: 0 -> 5"):
        check_config(tiny_config(**{"rollout.top_k": 5}), tmp_path)


def test_a_broken_config_is_refused_in_words(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"config.json: not a config"):
        check_config(tiny_config(), tmp_path)


@pytest.mark.parametrize("job", [loop, sft])
def test_from_the_first_checkpoint_on_the_config_may_not_change(tiny_config, tmp_path, monkeypatch, job):
    write_config(tiny_config(), tmp_path)
    other = tiny_config(**{"optimizer.weight_decay": 0.5})
    monkeypatch.setattr(job, "load_tokenizer", lambda config: 1 / 0)  # what comes after the comparison
    with pytest.raises(ZeroDivisionError):
        job.run(other, tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config.optimizer.weight_decay: 0.01 -> 0.5; give"):
        job.run(other, tmp_path)
    with pytest.raises(ZeroDivisionError):
        job.run(other, tmp_path, allow_changed=("optimizer.weight_decay",))
