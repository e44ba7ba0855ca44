"""The whole recipe, unattended: SFT where there is no model, difficulty, filter, stages, evaluation, export.

WORKDIR/config.json      the config; one that would give another result is refused
WORKDIR/sft/             a run of training.sft, where config.model.path is empty and config.sft.data is not
WORKDIR/difficulty/      pass rates, the datasets measured/ and kept/, difficulty.png
WORKDIR/train/           a run of training.loop through all stages, on difficulty/kept
WORKDIR/evaluation/      responses.parquet and scores.json of the trained model
WORKDIR/export/          the trained model as a Hugging Face directory
WORKDIR/done/PHASE.json  appears when a phase is complete; such a phase is not done again

A finished run that is given more steps trains on. Its evaluation and export so far stay as evaluation_STEPS/ and
export_STEPS/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax import hf
from polaris_jax.errors import UserError
from polaris_jax.evaluation import difficulty, job
from polaris_jax.files import write_json
from polaris_jax.loggers import check_installed
from polaris_jax.runs.workdir import check_config, hold, write_config
from polaris_jax.sharding.multihost import barrier, is_writer
from polaris_jax.training import loop, sft
from polaris_jax.training.metrics import History, read_metrics

Announce = Callable[[str], None]


class Outcome(NamedTuple):
    """history: of the GRPO steps. scores: of the trained model, by benchmark. export: the Hugging Face directory.

    phases: for each phase the seconds and device-hours of the start that completed it.
    """

    history: History
    scores: dict[str, dict[str, Any]]
    export: Path
    phases: dict[str, dict[str, float]]


def run(
    config: ConfigDict,
    workdir: str | Path,
    *,
    announce: Announce = lambda text: None,
    allow_changed: tuple[str, ...] = (),
) -> Outcome:
    """Does what is still to be done of the recipe in `workdir`.

    Each phase resumes where it was stopped, a complete one is left alone, so that a run that is killed and started
    again with the same config ends like one that was not. More steps or further stages than before are trained, and
    what comes after is done anew. announce: told what begins. allow_changed: keys that may be otherwise than at the
    start before. Raises UserError where config, data, models and workdir do not fit together. Problems that a later
    stage brings with a `data.train` of its own are not measured.
    """
    configs.check(config)
    check_installed(config.training.loggers)
    configs.check_followed(stage for _, stage in configs.stages(config))
    if config.stages and "data.train" in config.stages[0]:
        raise UserError("config.stages: the first stage's `data.train` belongs into config.data.train, to be measured")
    if config.data.mix:
        raise UserError("config.data.mix: the recipe measures one dataset; join them with experiments/prepare_data.py")
    with hold(workdir) as held:
        check_config(config, held, allowed=allow_changed, growing=("training.steps", "stages"))
        write_config(config, held)
        reopen(held, sum(stage.training.steps for _, stage in configs.stages(config)), announce)
        return _run(config, held, announce, allow_changed)


def _run(config: ConfigDict, workdir: Path, announce: Announce, allow_changed: tuple[str, ...]) -> Outcome:
    def once(phase: str, work: Callable[[], object]) -> None:
        do_once(workdir, phase, work, announce)

    if not config.model.path and config.sft.data:
        base = config
        once("sft", lambda: sft.run(base, workdir / "sft", allow_changed=allow_changed))
        config = configs.override(config, {"model.path": str(workdir / "sft")})
    measured = workdir / "difficulty"
    once("difficulty", lambda: difficulty.run(config, measured))
    training = configs.override(config, {"data.train": str(measured / "kept")})
    changed = (*allow_changed, "model.path", "data.train")  # with the workdir, which may have been moved
    once("train", lambda: loop.run(training, workdir / "train", allow_changed=changed))
    trained = configs.override(config, {"model.path": str(workdir / "train")})
    scored = workdir / "evaluation"
    once("evaluation", lambda: job.run(trained, scored))
    once("export", lambda: export(config, workdir / "train", workdir / "export"))
    scores = json.loads((scored / "scores.json").read_text(encoding="utf-8"))["scores"]
    history = History(tuple(read_metrics(workdir / "train")), workdir / "train")
    return Outcome(history, scores, workdir / "export", finished_phases(workdir))


def reopen(workdir: Path, steps: int, announce: Announce) -> None:
    """Where training is complete but took fewer than `steps`: it and the phases behind it are to be done again.

    The marker of training goes last, so that what was stopped in between is done by the next start.
    """
    marker = workdir / "done" / "train.json"
    barrier("before reopening")
    if not marker.exists() or (done := read_metrics(workdir / "train")[-1]["step"]) >= steps:
        return
    announce(f"train: {done} steps were done before, now there are {steps}")
    barrier("all have read what is done")
    if is_writer():
        for phase in ("evaluation", "export"):
            if (workdir / phase).exists():
                (workdir / phase).rename(workdir / f"{phase}_{done}")
            (workdir / "done" / f"{phase}.json").unlink(missing_ok=True)
        marker.unlink()


def do_once(workdir: Path, phase: str, work: Callable[[], object], announce: Announce) -> None:
    """Does the work of a phase unless WORKDIR/done says that it is complete, and says so there."""
    marker = workdir / "done" / f"{phase}.json"
    barrier(f"before {phase}")
    if marker.exists():
        announce(f"{phase}: done before")
        return
    announce(phase)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    if is_writer():
        marker.parent.mkdir(exist_ok=True)
        write_json(marker, {"seconds": seconds, "device_hours": seconds * jax.device_count() / 3600})


def finished_phases(workdir: Path) -> dict[str, dict[str, float]]:
    """What the markers say, in the order in which the phases were completed."""
    markers = sorted((workdir / "done").glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in markers}


def export(config: ConfigDict, source: Path, target: Path) -> None:
    """Exports a run, with the context extension it was evaluated with. An export that is there is whole."""
    factor = job.engine_config(config).yarn_factor
    if not target.exists():
        hf.export_model(
            source,
            target,
            dtype=config.model.dtype,
            yarn_factor=factor if factor > 1 else 0.0,
            yarn_attention_factor=config.rollout.yarn_attention_factor,
            yarn_original=config.rollout.yarn_original,
        )
