"""Checkpoints of a run's whole state, and what else a run's directory holds.

WORKDIR/model.json               the model's shape
WORKDIR/tokenizer/               a Hugging Face tokenizer
WORKDIR/checkpoints/STEP/state   parameters, optimizer and step (orbax)
WORKDIR/checkpoints/STEP/host    stage, place in the data, accuracies, temperature (json)
WORKDIR/checkpoints/STEP/arrays  right responses kept for the rescue, where there are any
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from polaris_jax.errors import UserError
from polaris_jax.training.host import HostState, from_saved, to_saved
from polaris_jax.training.state import TrainState


def prepare_workdir(workdir: str | Path) -> Path:
    """The directory, made if missing. Raises UserError where it cannot be written."""
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: not writable")
    return path


def open_checkpoints(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The run's checkpoints, the newest `keep` of which are kept. Saving is atomic: a step is there whole or not."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(workdir / "checkpoints", options=options, item_names=("state", "host", "arrays"))


def save(checkpoints: ocp.CheckpointManager, state: TrainState, host: HostState) -> None:
    """Saves both under the state's step."""
    saved, arrays = to_saved(host)
    items = {"state": ocp.args.StandardSave(state), "host": ocp.args.JsonSave(saved)}
    if arrays:
        items["arrays"] = ocp.args.StandardSave(arrays)
    checkpoints.save(int(state.step), args=ocp.args.Composite(**items))


def restore(checkpoints: ocp.CheckpointManager, like: TrainState) -> tuple[TrainState, HostState] | None:
    """The newest checkpoint's state, placed like `like`, and its host state; None where there is none.

    Raises UserError when the saved state is of another model.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {"state": ocp.args.StandardRestore(abstract), "host": ocp.args.JsonRestore()}
    if (checkpoints.directory / str(step) / "arrays").exists():
        items["arrays"] = ocp.args.StandardRestore()
    try:
        restored = checkpoints.restore(step, args=ocp.args.Composite(**items))
    except ValueError as error:
        where = f"{checkpoints.directory}/{step}"
        raise UserError(f"{where}: does not fit the configured model or optimizer: {error}") from error
    return restored["state"], from_saved(restored["host"], restored.get("arrays") or {})
