"""What a job will need of this machine's memory, said before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.evaluation.job import engine_config
from polaris_jax.hf.hub import resolve
from polaris_jax.plan.memory import PHASES, SAMPLING, TRAINING, phase_memory, plan_mesh
from polaris_jax.plan.planner import model_shape
from polaris_jax.rollout import cpu

GIB = 2**30
PROGRAM = 0.7 * GIB  # of the host's memory: Python, its libraries and compiled programs
LEFT_OUT = {"evaluation": ("moments", "reference"), "SFT": ("cache",)}  # of the parts of a GRPO step
JOBS = {"GRPO": PHASES, "SFT": TRAINING, "evaluation": SAMPLING}
SMALLER_STATE = "config.optimizer.moments=int8 or config.optimizer.offload=True"
CHEAPER = {  # what makes a phase smaller
    **dict.fromkeys(SAMPLING, "lower config.rollout.slots, or set config.rollout.cache_gib"),
    "gradients": f"lower config.updates.rows, set config.model.remat=full, {SMALLER_STATE}",
    "apply": f"set {SMALLER_STATE}, train adapters (config.model.lora_rank=16), or take more devices",
}


def memory_line(config: ConfigDict, job: str) -> str:
    """Such as "memory: about 6.1 of 24.0 GiB, most of it in gradients", and what to lower where that is too much.

    job: one of `JOBS`. The figure is the planner's, from shapes alone; that of the host's memory has the program in it.
    Where the config names no model that is known before it is loaded, that is said instead.
    """
    try:
        needed, phase = needs(config, job)
    except UserError as error:  # the job itself refuses what is wrong, and later
        return f"memory: not known yet ({error})"
    limit = capacity()
    line = f"memory: about {needed / GIB:.1f} of {limit / GIB:.1f} GiB, most of it in {phase}"
    return line if needed <= limit else f"{line}; that does not fit: {CHEAPER[phase]}"


def needs(config: ConfigDict, job: str) -> tuple[float, str]:
    """Bytes on a device in the fullest phase of a job, and that phase; all devices where they share the host's memory.

    Raises UserError where the config is wrong or its model unknown.
    """
    configs.check(config)
    known = _with_shape(config)
    fullest = []
    for _, stage in configs.stages(known):
        stage = _as_planned(stage, job)
        model = model_shape(stage)
        if model.remat == "offload" and not _own_memory():
            model = model.replace(remat="full")
        mesh = plan_mesh(stage.mesh, jax.device_count() - stage.rollout.devices)
        memory = phase_memory(model, stage, mesh, jax.local_devices()[0].platform)
        for phase in JOBS[job]:
            parts = {part: size for part, size in memory[phase].items() if part not in LEFT_OUT.get(job, ())}
            fullest.append((sum(parts.values()), phase))
    size, phase = max(fullest)
    return size if _own_memory() else size * jax.local_device_count() + PROGRAM, phase


def capacity() -> float:
    """Bytes of the first device's own memory, or of the host's where it has none."""
    return _own_memory() or float(cpu.memory(jax.local_devices()[0]))


def _own_memory() -> float:
    return float((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def _as_planned(config: ConfigDict, job: str) -> ConfigDict:
    """The stage with what the job samples or trains on where the planner looks for a GRPO step's."""
    config = config.copy_and_resolve_references().unlock()
    if not _own_memory():  # the host's is the same, and what is moved there stays
        config.optimizer.offload = False
    if job == "evaluation":
        config.rollout, config.model.lora_rank = engine_config(config), 0
    if job == "SFT":
        config.algorithm.kl, config.rollout.samples = 0.0, 2
        config.rollout.prompts = math.ceil(config.sft.batch_size / 2)
    return config


def _with_shape(config: ConfigDict) -> ConfigDict:
    """The config with a directory in place of a hub name whose shape is no preset's: its config.json is fetched."""
    path = config.model.path
    try:
        model_shape(config)
    except UserError:
        if not path or Path(path).exists():
            raise
        return configs.override(config, {"model.path": str(resolve(path, ("config.json",)))})
    return config
