"""The trainer's parameters on the sampler's devices: one jitted cast, layout and reshard, nothing through the host."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.compilations import Compilations
from polaris_jax.models.lora import merge
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.quantise import map_kernels, quantise, scale_sharding
from polaris_jax.models.transformer import unstack
from polaris_jax.rollout.layout import laid_shardings, lay_out, transposed
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.sharding.mesh import AXES
from polaris_jax.sharding.rules import param_shardings


def replica_meshes(mesh: Mesh) -> list[Mesh]:
    """One mesh for each group of this process's devices that holds the model once: `tensor` devices, other axes 1.

    Raises ValueError when the tensor axis spans processes, since each process decodes at its own pace.
    """
    devices_XN = np.moveaxis(mesh.devices, AXES.index("tensor"), -1).reshape(-1, mesh.shape["tensor"])
    replicas = []
    for devices_N in devices_XN:
        owners = {device.process_index for device in devices_N}
        if len(owners) > 1:
            raise ValueError(
                f"mesh axis tensor={len(devices_N)} spans processes {sorted(owners)}: sampling needs it in one"
            )
        if owners == {jax.process_index()}:
            shape = [len(devices_N) if axis == "tensor" else 1 for axis in AXES]
            replicas.append(Mesh(devices_N.reshape(shape), AXES, axis_types=mesh.axis_types))
    return replicas


class WeightSync:
    """Call it with the trainer's parameters: a list with the sampler's, in `model.dtype`, for each replica.

    They lie as `layout.lay_out` says, or, but for the transposed unembedding, in the trainer's own memory where the
    platform's `shares` says so; adapters are merged into the base. weights: "", or what the projection kernels are
    quantised to, a name of `quantise.CODES`. compilations: counts the program. cast: the jitted program behind it.
    replica_shardings: of its results, for each replica.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        replicas: list[Mesh],
        weights: str = "",
        compilations: Compilations | None = None,
    ):
        self._platform = PLATFORMS[mesh.devices.flat[0].platform]
        options = {"join": mesh.shape["tensor"] == 1, "transpose": self._platform.transpose}

        def shardings(mesh: Mesh) -> Any:
            found = param_shardings(model.replace(lora=None), mesh)
            return laid_shardings(model, map_kernels(found, scale_sharding) if weights else found, **options)

        def cast(params: Any) -> Any:
            if model.lora is not None:  # layer by layer, since what is merged is float32
                params = merge(params | {"layers": unstack(params["layers"])}, model.lora)
            if weights:
                params = map_kernels(params, partial(quantise, weights=weights), lambda x: x.astype(model.dtype))
            else:
                params = jax.tree.map(lambda x: x.astype(model.dtype), params)
            return lay_out(model, params, **options)

        self._transposed = jax.jit(partial(transposed, model))
        self._shared = model.lora is None and self._platform.shares(model, mesh, weights)
        self._replicas, self._whole = replicas, param_shardings(model, mesh)
        self.replica_shardings = [shardings(replica) for replica in replicas]
        spread = jax.tree.map(lambda s: NamedSharding(mesh, _without_fsdp(s.spec)), shardings(mesh))
        self.cast = jax.jit((compilations or Compilations()).of(cast), out_shardings=spread)

    def __call__(self, params: Any) -> list[Any]:
        params = jax.device_put(params, self._whole)  # from other devices, where training has its own
        if self._shared:
            return [self._platform.shared_layers(params) | self._transposed(params)]
        spread = self.cast(params)
        return [
            jax.tree.map(partial(_on_replica, devices=set(replica.devices.flat)), spread, shardings)
            for replica, shardings in zip(self._replicas, self.replica_shardings, strict=True)
        ]


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))


def _on_replica(x: jax.Array, sharding: NamedSharding, devices: set[jax.Device]) -> jax.Array:
    """The part of a global array that lies on a replica's devices, as an array of these; no data moves."""
    shards = [shard.data for shard in x.addressable_shards if shard.device in devices]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)
