"""Checkpoints of a run's whole state.

WORKDIR/checkpoints/STEP/state           parameters, or LoRA's adapters alone, optimizer and step (orbax)
WORKDIR/checkpoints/STEP/host            stage, place in the data, accuracies, temperature (json)
WORKDIR/checkpoints/STEP/arrays          the next step's rollouts, where they were sampled beside this one's update
WORKDIR/checkpoints/STEP/solutions       right rollouts kept for the rescue, where there are any (`solutions.py`)
WORKDIR/checkpoints/STEP/checksums.json  of all these files (`files.py`)
WORKDIR/damaged/STEP                     a checkpoint that was found damaged
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from polaris_jax import files
from polaris_jax.errors import UserError
from polaris_jax.models.lora import join, split
from polaris_jax.sharding import multihost
from polaris_jax.supervision import patience
from polaris_jax.training import solutions
from polaris_jax.training.host import HostState, from_saved, to_saved
from polaris_jax.training.state import TrainState

SAVE_ERRORS = (OSError, ValueError)  # of the operating system, and the same as TensorStore passes them on


class Checkpoints:
    """A run's checkpoints. A context manager, which at its end waits for the save under way.

    Saving is asynchronous (the arrays are copied to the host, then training goes on while they are written) and
    atomic: a step is there whole and with its checksums, or not at all. A save that fails, as on a full disk, is told
    and due again after the next step; no older checkpoint is removed before a newer one is complete. Several processes
    save and restore together. settings: `config.training`.
    """

    def __init__(self, workdir: Path, settings: ConfigDict):
        self._directory, self._damaged, self._settings = workdir / "checkpoints", workdir / "damaged", settings
        self._manager = self._open()
        self._step, self._bytes, self._saving = 0, 0, False
        self._solutions = solutions.Save((), {}, None)  # of the save under way, or of the newest checkpoint
        self._before: tuple[Mapping[str, solutions.File], Path | None] = {}, None  # of the newest checkpoint
        self._began = time.monotonic()  # of the newest save, or of the run
        self.failed = False  # the newest save
        self.seconds = 0.0  # for which the newest save held up training

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        self.wait()
        self._manager.close()
        if self.failed and exception is None:
            raise UserError(f"{self._directory}: step {self._step} could not be saved; make room and start again")

    def due(self, step: int, settings: ConfigDict) -> bool:
        """Whether the state after `step` is to be saved, as `config.training` of the stage says or since a save failed.

        Every process calls it after every step, and all get the same answer.
        """
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()
        periods = [every for every in (settings.checkpoint_every, settings.keep_every) if every]
        minutes = settings.checkpoint_minutes
        late = minutes > 0 and time.monotonic() - self._began >= 60 * minutes
        return multihost.any_process(self.failed or late or any(step % every == 0 for every in periods))

    def has(self, step: int) -> bool:
        """Whether the state after `step` is saved or being saved."""
        return step in self._manager.all_steps()

    @patience()
    def save(
        self,
        state: TrainState,
        host: HostState,
        metrics: Mapping[str, float] | None = None,
        *,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to save both under the state's step.

        metrics: of that step, for `config.training.keep_best`. first: what has to be on disk before; where it raises
        OSError, nothing is saved.
        """
        self.wait()
        self._step, self._began, self.failed = int(state.step), time.monotonic(), False
        saved, arrays = to_saved(host)
        rollouts = {key: solution.rollout for key, solution in host.curriculum.solutions.items()}
        self._solutions = solutions.plan(rollouts, self._before[0], f"{self._step}.npz")
        saved["solutions"] = self._solutions.index
        trained = state._replace(params=split(state.params)[0])
        items = {"state": ocp.args.StandardSave(trained), "host": ocp.args.JsonSave(saved)}
        if arrays:
            items["arrays"] = ocp.args.StandardSave(arrays)
        problem = None
        try:
            first()
        except OSError as error:
            problem = error
        if multihost.any_process(problem is not None):  # together: saving is a collective
            return self._fail(problem or OSError("another process could not write"))
        try:
            args = ocp.args.Composite(**items)
            self._saving = self._manager.save(self._step, args=args, metrics=self._ranked(metrics or {}))
        except SAVE_ERRORS as error:
            self._fail(error)
        self.seconds = time.monotonic() - self._began

    @patience()
    def wait(self) -> None:
        """Returns when the save under way, if any, is complete or has failed."""
        try:
            self._manager.wait_until_finished()
        except SAVE_ERRORS as error:
            self._fail(error)
        if self._saving:
            self._before = self._solutions.files, self._directory / str(self._step)
        if self._saving and multihost.is_writer():
            with suppress(OSError):  # of a log file on the same full disk
                print(f"checkpoint {self._step}: {self._bytes / 2**20:,.1f} MiB in {self._seconds:.1f} s", flush=True)
        self._saving = False

    @patience()
    def restore(self, like: TrainState) -> tuple[TrainState, HostState] | None:
        """The newest whole checkpoint's state, placed like `like`, and its host state; None where there is none.

        A damaged one is told and moved to WORKDIR/damaged. Where and on how many devices it was saved does not matter.
        A frozen base is that of `like`, whose other arrays are deleted to make room for what is read. Raises UserError
        when the saved state is of another model.
        """
        found = self._newest_whole() if multihost.is_writer() else None
        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
        self._manager.reload()
        if step < 0:
            return None
        trained, frozen = split(like.params)
        replaced = like._replace(params=trained)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, replaced)
        jax.tree.map(lambda x: x.delete(), replaced)
        items = {"state": ocp.args.StandardRestore(abstract), "host": ocp.args.JsonRestore()}
        if (self._directory / str(step) / "arrays").exists():
            items["arrays"] = ocp.args.StandardRestore()
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except ValueError as error:
            where = self._directory / str(step)
            raise UserError(f"{where}: does not fit the configured model or optimizer: {error}") from error
        saved = dict(restored["host"])
        kept, found = solutions.read(self._directory / str(step), saved.pop("solutions"))
        self._before = found, self._directory / str(step)
        state = restored["state"]
        state = state._replace(params=join(state.params, frozen))
        return state, from_saved(saved, restored.get("arrays") or {}, kept)

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation(self._settings),
            best_fn=_best(self._settings.keep_best) if self._settings.keep_best else None,
            cleanup_tmp_directories=True,  # of saves that were killed
            async_options=ocp.AsyncOptions(post_finalization_callback=self._before_commit),
        )
        return ocp.CheckpointManager(self._directory, options=options, item_names=("state", "host", "arrays"))

    def _before_commit(self) -> None:
        """Called by Orbax when all files of a checkpoint are complete, before it takes its name."""
        staged = next(self._directory.glob(f"{self._step}.orbax-checkpoint-tmp*"), self._directory / str(self._step))
        linked = solutions.write(self._solutions, self._before[1], staged)
        self._bytes = files.write_checksums(staged, linked)
        self._seconds = time.monotonic() - self._began

    def _fail(self, error: Exception) -> None:
        self.failed, self._saving = True, False
        where = self._directory / str(self._step)
        logging.warning("%s: not saved: %s; the one before is kept, and the next step is saved instead", where, error)
        with suppress(*SAVE_ERRORS):
            self._manager.close()
        self._manager = self._open()  # removes what the failed save left

    def _newest_whole(self) -> int | None:
        """The newest checkpoint without damage; those that are damaged are told and moved aside.

        Files of solutions are shared: where the one before has lost some as well, the newest is used without them.
        """
        usable: dict[int, dict[str, str]] = {}  # steps, newest first, and what is wrong with their solutions
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = files.damage(self._directory / str(step))
            if not all(name.startswith(f"{solutions.DIRECTORY}/") for name in found):
                self._set_aside(step, next(iter(found.values())))
                continue
            usable[step] = found
            if not found or len(usable) == 2:
                break
        for step, found in usable.items():
            if not found:
                return step
            if not all(usable.values()):
                self._set_aside(step, next(iter(found.values())))
                continue
            for name, problem in found.items():
                logging.warning("%s: %s; the run resumes without its solutions", self._directory / str(step), problem)
                (self._directory / str(step) / name).unlink(missing_ok=True)
            return step
        return None

    def _set_aside(self, step: int, problem: str) -> None:
        path, aside = self._directory / str(step), self._damaged / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
        logging.warning("%s: %s; moved to %s, and the checkpoint before it is used", path, problem, aside)

    def _ranked(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        name = self._settings.keep_best.removeprefix("-")
        return {name: float(metrics[name])} if metrics.get(name, np.nan) == metrics.get(name) else None


def any_steps(workdir: Path) -> bool:
    """Whether a run in this directory has saved anything."""
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))


def preservation(settings: ConfigDict) -> policies.PreservationPolicy:
    """Which checkpoints stay: the newest `keep`, every `keep_every`th step, and the best by the metric `keep_best`."""
    kept: list[policies.PreservationPolicy] = [policies.LatestN(settings.keep)]
    if settings.keep_every:
        kept.append(policies.preservation_policy.EveryNSteps(settings.keep_every))
    if settings.keep_best:
        best = _best(settings.keep_best)
        kept.append(policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
    return policies.AnyPreservationPolicy(kept)


def _best(name: str) -> Callable[[Mapping[str, float]], float]:
    if name.startswith("-"):
        return lambda metrics: -metrics[name[1:]]
    return lambda metrics: metrics[name]
