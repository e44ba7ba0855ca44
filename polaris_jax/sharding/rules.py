"""The one place that says how arrays are laid over the mesh: logical axis -> mesh axes."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import init_params

RULES = (
    # parameters
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("layers", None),
    # activations
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    ("act_embed", None),
)


@cache
def param_shapes(config: ModelConfig) -> Any:
    """Shapes of the float32 parameters, boxed with their logical axis names."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """A pytree of `NamedSharding`, one for each parameter of the model."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(param_shapes(config)), mesh, RULES)


def sharded_params(config: ModelConfig, mesh: Mesh, seed: int) -> Any:
    """Random float32 parameters, created where they live: no device ever holds all of them."""
    init = jax.jit(lambda key: nn.unbox(init_params(config, key)), out_shardings=param_shardings(config, mesh))
    return init(jax.random.key(seed))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of [R, T] arrays such as those of `PackedBatch`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "context"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())
