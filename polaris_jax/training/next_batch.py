"""One step off-policy: the next batch is sampled on devices of its own while the present one is learnt from.

    step         n-1            n                n+1
    sampling     batch n        batch n+1        batch n+2
    learning     batch n-1      batch n          batch n+1      with ratios to the log-probs that were recorded

A stage's first batch is sampled alone, and nothing is sampled beside its last. What was sampled and not yet learnt from
is a part of the checkpoint: the parameters that it comes from are gone by then, and it is small beside them, so that
saving it is simpler than saving those to sample it again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.types import Group

Learnt, Found = TypeVar("Learnt"), TypeVar("Found")


class Sampled(NamedTuple):
    """A judged batch. groups: in the order of the visits. texts: of their responses. metrics: of how it was made."""

    groups: list[Group]
    texts: list[list[str]]
    metrics: dict[str, float]


def make_meshes(config: ConfigDict) -> tuple[Mesh, Mesh]:
    """The trainer's mesh and the sampler's: the same, or of the last `config.rollout.devices` devices.

    Raises UserError where these cannot be had, or there are several processes, whose devices cannot be split so.
    """
    count, devices = config.rollout.devices, jax.devices()
    if not count:
        mesh = make_mesh(config.mesh)
        return mesh, mesh
    if jax.process_count() > 1:
        raise UserError(f"config.rollout.devices: {count} needs one process, found {jax.process_count()}; expected 0")
    if count >= len(devices):
        raise UserError(f"config.rollout.devices: {count} of {len(devices)} devices leave none to train on")
    trainer = make_mesh(config.mesh, devices[:-count])
    tensor = trainer.shape["tensor"]
    if count % tensor:
        raise UserError(f"config.rollout.devices: expected a multiple of config.mesh.tensor={tensor}, found {count}")
    return trainer, make_mesh({"fsdp": -1, "tensor": tensor}, devices[-count:])


def both(learn: Callable[[], Learnt], sample: Callable[[], Found], stop: Callable[[], None]) -> tuple[Learnt, Found]:
    """What `learn`, here, and `sample`, in a thread, return. stop: ends the sampling where learning has failed."""
    with ThreadPoolExecutor(1, "sampling") as threads:
        sampled = threads.submit(sample)
        try:
            return learn(), sampled.result()
        except BaseException:
            stop()
            raise
