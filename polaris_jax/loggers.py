"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

`LOGGERS[name](workdir, config)` begins the run there, or continues the one that WORKDIR/loggers.json names, and returns
a `Logger`. It is given every row of the run, from the first step on, at each start: a row that the run holds there
already is not written twice, and one that it lacks, since the run was killed before, is. Where it sends to and with
which key is a matter of its own environment variables (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...), never of a config.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from polaris_jax.errors import UserError
from polaris_jax.files import write_json

KEPT = "loggers.json"


class Logger(NamedTuple):
    """write: takes a row of metrics with its `step`; raises OSError where that cannot be. close: ends the run there."""

    write: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


def tensorboard(workdir: Path, config: Mapping[str, Any]) -> Logger:
    """WORKDIR/tensorboard, written anew at each start: its files can end before a kill or hold steps done again."""
    from tensorboard.summary import Writer

    del config
    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
    writer = Writer(str(workdir / "tensorboard"))

    def write(row: Mapping[str, Any]) -> None:
        for name, value in metrics_of(row):
            writer.add_scalar(name, value, step=row["step"])

    return Logger(write, writer.close)


def wandb(workdir: Path, config: Mapping[str, Any]) -> Logger:
    """A run of Weights & Biases; with WANDB_MODE=offline in WORKDIR/wandb, where it is written anew at each start, so
    that `wandb sync` finds one run with every step once. Raises UserError where it cannot be begun."""
    import wandb as api

    identity = _kept(workdir).get("wandb") or secrets.token_hex(8)
    _keep(workdir, "wandb", identity)
    for old in (workdir / "wandb").glob(f"offline-run-*-{identity}"):
        shutil.rmtree(old)
    settings = api.Settings(console="off", silent=True, save_code=False, disable_git=True)
    project = os.environ.get("WANDB_PROJECT", "polaris_jax")
    try:
        run = api.init(dir=workdir, project=project, id=identity, name=workdir.name, resume="allow", settings=settings)
        run.config.update(dict(config), allow_val_change=True)
    except api.errors.Error as error:
        raise UserError(f"config.training.loggers: wandb: {error}; WANDB_MODE=offline needs no server") from error
    first = run.step  # the first one that it lacks: 0 where it is new

    def write(row: Mapping[str, Any]) -> None:
        if row["step"] >= first:
            run.log(dict(metrics_of(row)), step=row["step"])

    return Logger(write, run.finish)


def mlflow(workdir: Path, config: Mapping[str, Any]) -> Logger:
    """A run of MLflow, at MLFLOW_TRACKING_URI or else in WORKDIR/mlruns. Raises UserError where it cannot be begun."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:  # files, which MLflow 3 wants to be asked for
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (workdir / "mlruns").as_uri()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    try:
        client, identity = MlflowClient(tracking_uri=uri), _kept(workdir).get("mlflow")
        if not identity:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "polaris_jax")
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            identity = client.create_run(experiment, run_name=workdir.name).info.run_id
            _keep(workdir, "mlflow", identity)
            client.log_batch(identity, params=[Param(key, str(value)[:500]) for key, value in config.items()])
        client.update_run(identity, status="RUNNING")
        names = client.get_run(identity).data.metrics
        known = {(one.key, one.step) for name in names for one in client.get_metric_history(identity, name)}
    except MlflowException as error:
        raise UserError(f"config.training.loggers: mlflow at {uri}: {error}") from error

    def write(row: Mapping[str, Any]) -> None:
        named = [(re.sub(r"[^\w./ -]", "_", name), value) for name, value in metrics_of(row)]
        step, now = row["step"], int(time.time() * 1000)
        new = [Metric(name, float(value), now, step) for name, value in named if (name, step) not in known]
        tell(client.log_batch, metrics=new)

    def tell(what: Callable, **told: Any) -> None:
        try:
            what(identity, **told)
        except MlflowException as error:
            raise OSError(0, f"mlflow: {error}") from error

    return Logger(write, lambda: tell(client.set_terminated))


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}


def check_installed(names: Iterable[str]) -> None:
    """Raises UserError for the first of the loggers whose package is not installed, with the extra that installs it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"config.training.loggers: {name} is not installed; pip install 'polaris_jax[{name}]'")


def metrics_of(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The metrics of a row, without its step."""
    return [(name, value) for name, value in row.items() if name != "step"]


def _kept(workdir: Path) -> dict[str, str]:
    path = workdir / KEPT
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; remove it to begin new runs there") from error


def _keep(workdir: Path, name: str, identity: str) -> None:
    write_json(workdir / KEPT, _kept(workdir) | {name: identity})
