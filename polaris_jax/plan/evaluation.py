"""Where an evaluation's model fits: over how many devices its tensors are split, and what is left for the cache."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.errors import UserError
from polaris_jax.evaluation.job import engine_config
from polaris_jax.hf.hub import resolve
from polaris_jax.plan.memory import SAMPLING, cache_pages, phase_memory, plan_mesh, sequence_pages
from polaris_jax.plan.planner import model_shape
from polaris_jax.rollout.pools import page_bytes

LEAST_SEQUENCES = 8  # of full length, that a copy of the model has room for; fewer would leave a device idle


def fit(config: ConfigDict, memory: float, devices: int) -> ConfigDict:
    """The config with the smallest `mesh.tensor`, not below its own, with which the model fits on these devices.

    memory: bytes of a device that may be filled, infinite where that is not known: then all stays as it is. Where
    `rollout.cache_gib` is 0 and the cache of all slots does not fit, it becomes what is left. Raises UserError, with
    the arithmetic, where no split fits.
    """
    if math.isinf(memory):
        return config
    shape = _as_sampled(config)
    kv_heads = model_shape(shape).num_key_value_heads
    problem = f"its {kv_heads} key-value heads split over none of the {devices} devices"
    for tensor in range(config.mesh.tensor, devices + 1):
        if devices % tensor or kv_heads % tensor:
            continue
        changes = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": tensor, "mesh.context": 1}
        left, page, most = _room(configs.override(shape, changes), memory, devices)
        pages = min(left // page, most) if not config.rollout.cache_gib else most
        least = LEAST_SEQUENCES * sequence_pages(shape) + 1
        if left >= pages * page and pages >= min(least, most):
            gib = math.floor(1024 * pages * page / 2**30) / 1024
            return configs.override(config, changes | ({"rollout.cache_gib": gib} if pages < most else {}))
        problem = (
            f"over {tensor} devices {left / 2**30:.2f} of {memory / 2**30:.2f} GiB are left for the cache, which needs "
            f"{min(least, most) * page / 2**30:.2f}"
        )
    raise UserError(f"{config.model.path or config.model.preset} does not fit here: {problem}")


def _as_sampled(config: ConfigDict) -> ConfigDict:
    """The config with the model's files found and `rollout` as the evaluation's engine has it."""
    path = str(resolve(config.model.path, ("config.json",))) if config.model.path else ""
    engine = {f"rollout.{key}": value for key, value in engine_config(config).items()}
    return configs.override(config, engine | {"model.path": path, "algorithm.kl": 0.0})


def _room(config: ConfigDict, memory: float, devices: int) -> tuple[float, float, int]:
    """Bytes that weights and workspace leave for the cache, bytes of a page, and pages of all slots."""
    model, mesh = model_shape(config), plan_mesh(config.mesh, devices)
    found = phase_memory(model, config, mesh)
    used = max(sum(found[p].values()) - found[p]["moments"] - found[p].get("cache", 0) for p in SAMPLING)
    return memory - used, page_bytes(model, mesh, config.rollout), cache_pages(model, config, mesh)
