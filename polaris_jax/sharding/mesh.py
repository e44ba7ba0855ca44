"""The device mesh: axes data, fsdp, tensor, context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from polaris_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all). shape: size of each axis; one of them may be -1, "what is left".

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = shape or {}
    sizes = asked = [shape.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known:
        sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        described = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, asked, strict=True))
        raise UserError(f"config.mesh: {described} does not fit {len(devices)} devices: sizes must multiply to that")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
