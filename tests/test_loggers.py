"""Each logger holds every step of a run once, however often the run was killed and resumed."""

import json
import math

import pytest

from configs import tiny
from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.loggers import LOGGERS, check_installed
from polaris_jax.training import loop, recipe, sft
from polaris_jax.training.metrics import MetricsLogger


def log(workdir, name, start, steps):
    """Writes steps of a run that begins behind `start`."""
    workdir.mkdir(exist_ok=True)
    with MetricsLogger(workdir, "test", 4, start, (), (name,), {"seed": 0, "stages": ()}) as logger:
        for step in steps:
            logger.write(step, {"reward": step / 10, "evaluation/sums/avg@2": math.nan})


def in_tensorboard(workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    found = [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors("reward")]
    return "tensorboard", [(step, round(value, 6)) for step, value in found]


def wandb_records(path):
    """The records of a .wandb file: behind 7 bytes of header, in blocks of 32 KiB, each a part or the whole of one with
    4 bytes of checksum, 2 of length and 1 that says which (LevelDB's log format)."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            yield record
            record = b""


def in_wandb(workdir):
    """The one offline run: its id, and what its file says was logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (workdir / "wandb").glob("offline-run-*/*.wandb")
    found = []
    for record in map(Record.FromString, wandb_records(path)):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            assert math.isnan(float(row["evaluation/sums/avg@2"]))
            found.append((row["_step"], row["reward"]))
    return path.stem, found


def in_mlflow(workdir):
    from mlflow import MlflowClient

    client = MlflowClient((workdir / "mlruns").as_uri())
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.params == {"seed": "0", "stages": "()"}
    assert math.isnan(run.data.metrics["evaluation/sums/avg_2"])
    return run.info.run_id, [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "reward")]


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_that_is_resumed_goes_to_the_same_run_with_each_step_once(name, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[{name}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    log(tmp_path / "run", name, 0, [1, 2, 3])
    first, rows = READERS[name](tmp_path / "run")
    assert rows == [(1, 0.1), (2, 0.2), (3, 0.3)]
    log(tmp_path / "run", name, 2, [3, 4])  # the newest checkpoint is that of step 2
    again, rows = READERS[name](tmp_path / "run")
    assert again == first
    assert rows == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_rows_that_a_logger_lost_are_told_again(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log(tmp_path / "run", "tensorboard", 0, [1, 2])
    log(tmp_path / "run", "mlflow", 2, [3, 4])
    assert [step for step, _ in in_mlflow(tmp_path / "run")[1]] == [1, 2, 3, 4]


def test_a_logger_that_fails_meanwhile_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    told, opened = [], []

    def failing(workdir, config):
        def write(row):
            if row["step"] == 2 and len(opened) == 1:
                raise OSError(0, "the server is gone")
            told.append((len(opened), row["step"]))

        opened.append(workdir)
        return LOGGERS["tensorboard"](workdir, config)._replace(write=write)

    monkeypatch.setitem(LOGGERS, "mlflow", failing)
    log(tmp_path / "run", "mlflow", 0, [1, 2, 3])
    assert told == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert caplog.text.count("the server is gone") == 1


@pytest.mark.parametrize("run", [loop.run, sft.run, recipe.run])
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_with_its_extra_before_anything_loads(run, name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, package=None: None if wanted == name else True)
    config = configs.override(tiny.get_config(), {"training.loggers": ("tensorboard", name)})
    with pytest.raises(UserError, match=rf"{name} is not installed; pip install 'polaris_jax\[{name}\]'"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loggers_that_are_there_pass_and_others_are_refused():
    check_installed(("tensorboard",))
    with pytest.raises(UserError, match=r"training\.loggers: expected some of tensorboard, wandb, mlflow"):
        configs.override(tiny.get_config(), {"training.loggers": ("wnadb",)})


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_keys_of_loggers_are_secrets(variable, monkeypatch):
    monkeypatch.setenv(variable, "0123456789abcdef")
    with pytest.raises(UserError, match=r"model\.path: holds a secret"):
        configs.override(tiny.get_config(), {"model.path": "runs/0123456789abcdef"})
