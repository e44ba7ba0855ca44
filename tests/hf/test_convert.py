"""import_hf and export_hf: there and back, from a training run, and what happens to bad input."""

import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from polaris_jax import files, hf
from polaris_jax.errors import UserError

from .conftest import assert_same_bytes


class TrainState(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_import_then_export_gives_the_same_bytes(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    hf.import_model(source, tmp_path / "ours")
    hf.export_model(tmp_path / "ours", tmp_path / "theirs")
    assert_same_bytes(source, tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (source / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert hf.stop_ids(hf.load_tokenizer(tmp_path / "theirs")) == hf.stop_ids(hf.load_tokenizer(source))


@pytest.fixture(scope="module")
def run_directory(qwen3, tmp_path_factory):
    """A training run's directory with two checkpoints; those of step n have n added to every parameter."""
    workdir = tmp_path_factory.mktemp("run")
    config, params = hf.load(qwen3, dtype="float32")
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "host")) as checkpoints:
        for step in (5, 10):
            moved = jax.tree.map(lambda x, step=step: x + step, params)
            state = TrainState(np.int32(step), moved, [{"mu": moved}, None])
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave({"stage": 0}))
            checkpoints.save(step, args=items)
        checkpoints.wait_until_finished()
    (workdir / "model.json").write_text(hf.config_to_json(config))
    hf.load_tokenizer(qwen3).save_pretrained(workdir / "tokenizer")
    return workdir, config, params


@pytest.mark.parametrize(("step", "added"), [(None, 10), (5, 5)])
def test_export_from_a_training_run(run_directory, tmp_path, step, added):
    workdir, config, params = run_directory
    hf.export_model(workdir, tmp_path / "theirs", step=step, dtype="float32")
    loaded_config, loaded = hf.load(tmp_path / "theirs", dtype="float32")
    assert loaded_config == config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + added), loaded, params)


def test_load_takes_a_training_run(run_directory):
    workdir, config, params = run_directory
    loaded_config, loaded = hf.load(workdir)
    assert loaded_config == config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 10), loaded, params)


def test_unknown_step(run_directory, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints: no step 7; there are 5, 10"):
        hf.export_model(run_directory[0], tmp_path / "theirs", step=7)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_another_shape(run_directory, copy_of, tmp_path):
    workdir = copy_of(run_directory[0])
    config = run_directory[1].replace(hidden_size=32)
    (workdir / "model.json").write_text(hf.config_to_json(config))
    with pytest.raises(UserError, match=r"state: does not fit model\.json: parameter params/embedding has shape"):
        hf.export_model(workdir, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_damaged_checkpoint_is_refused(run_directory, copy_of, tmp_path):
    workdir = copy_of(run_directory[0])
    files.write_checksums(workdir / "checkpoints" / "10")
    largest = max((workdir / "checkpoints" / "10").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match=r"10: .* has another checksum than when it was written; there"):
        hf.export_model(workdir, tmp_path / "theirs")
    hf.export_model(workdir, tmp_path / "theirs", step=5)


def test_checkpoint_that_was_cut_short(run_directory, copy_of, tmp_path):
    workdir = copy_of(run_directory[0])
    (workdir / "checkpoints" / "10" / "state" / "_METADATA").unlink()
    with pytest.raises(UserError, match=r"state: not a whole checkpoint"):
        hf.export_model(workdir, tmp_path / "theirs")


def test_run_without_a_checkpoint(run_directory, copy_of, tmp_path):
    workdir = copy_of(run_directory[0])
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"no parameters here: neither params/ nor checkpoints/STEP/"):
        hf.export_model(workdir, tmp_path / "theirs")


def test_existing_target_is_refused(qwen3, tmp_path):
    (tmp_path / "file").write_text("mine")
    for call in (hf.import_model, hf.export_model):
        with pytest.raises(UserError, match=r"exists already|no model\.json"):
            call(qwen3, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_of_a_failed_import(qwen3, copy_of, tmp_path):
    damaged = copy_of(qwen3)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        hf.import_model(damaged, tmp_path / "target" / "ours")
    assert list((tmp_path / "target").iterdir()) == []


def test_source_of_the_wrong_kind(qwen3, tmp_path):
    with pytest.raises(UserError, match=r"no model\.json: neither a training run nor"):
        hf.export_model(qwen3, tmp_path / "theirs")
    hf.import_model(qwen3, tmp_path / "ours")
    with pytest.raises(UserError, match="already a directory of ours"):
        hf.import_model(tmp_path / "ours", tmp_path / "again")
