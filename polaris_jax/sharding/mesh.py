"""The device mesh: axes data, fsdp, tensor, context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from polaris_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all). shape: size of each axis; one of them may be -1, "what is left".

    On TPUs neighbours on the mesh are neighbours on the torus; where no axis of that has the size asked for, one of its
    axes is split. Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(shape or {}, len(devices))
    laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_meshes(shape: Mapping[str, int], sampling_devices: int) -> tuple[Mesh, Mesh]:
    """The trainer's mesh and the sampler's: the same one, or the sampler's of the last `sampling_devices` devices.

    Raises UserError where these cannot be had, or there are several processes, whose devices cannot be split so.
    """
    count, devices = sampling_devices, jax.devices()
    if not count:
        mesh = make_mesh(shape)
        return mesh, mesh
    if jax.process_count() > 1:
        raise UserError(f"config.rollout.devices: {count} needs one process, found {jax.process_count()}; expected 0")
    if count >= len(devices):
        raise UserError(f"config.rollout.devices: {count} of {len(devices)} devices leave none to train on")
    trainer = make_mesh(shape, devices[:-count])
    tensor = trainer.shape["tensor"]
    if count % tensor:
        raise UserError(f"config.rollout.devices: expected a multiple of config.mesh.tensor={tensor}, found {count}")
    return trainer, make_mesh({"fsdp": -1, "tensor": tensor}, devices[-count:])


def axis_sizes(shape: Mapping[str, int], devices: int) -> list[int]:
    """The size of each axis of `AXES` on that many devices. shape and errors: as in `make_mesh`."""
    sizes = asked = [shape.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known:
        sizes = [devices // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices or min(sizes) < 1:
        described = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, asked, strict=True))
        raise UserError(f"config.mesh: {described} does not fit {devices} devices: sizes must multiply to that")
    return sizes
