"""What an update does otherwise on one platform."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from polaris_jax.optim.kernel import update_blocks


def _wait_for_memory(present: Any, before: Any) -> None:
    """Waits until the present batch is computed, and a moment more, when the CPU client has freed what that needed.

    Else the activations of several batches are in memory at once. Accelerators run batches one after the other in
    memory of one, and must find the next one queued.
    """
    jax.block_until_ready(present)
    time.sleep(5e-4)


def _queue_one(present: Any, before: Any) -> None:
    """Waits until the batch before is computed, so that one is queued behind the one that runs.

    Were all queued at once, nothing would be heard of an update until its end, which the watchdog takes for a hang.
    """
    jax.block_until_ready(before)


def has_own_memory(mesh: Mesh) -> bool:
    """Whether the devices' memory is another than the host's."""
    return mesh.devices.flat[0].platform != "cpu"


AFTER_BATCH: dict[str, Callable[[Any, Any], None]] = {
    "cpu": _wait_for_memory, "gpu": _queue_one, "tpu": _queue_one,
}  # fmt: skip


# Bytes. A CPU holds many temporaries, and is faster where its caches do, too. XLA for TPUs keeps new moments in float32
# on the way to int8.
_PIECE = {"cpu": 2**24, "tpu": 2**28}


def apply_piece(mesh: Mesh | AbstractMesh, platform: str) -> float:
    """Bytes of a parameter that the optimizer updates at once; those of larger ones are updated in pieces.

    On several devices none are: their first axis may be split.
    """
    return _PIECE.get(platform, math.inf) if mesh.size == 1 else math.inf


def apply_kernel(mesh: Mesh | AbstractMesh, platform: str) -> Callable | None:
    """What updates parameters with int8 moments; None: XLA, to which a block may lie on several devices."""
    return partial(update_blocks, mesh=mesh) if platform == "gpu" and mesh.size == 1 else None
