"""The one place that says how arrays are laid over the mesh: logical axis -> mesh axes."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.models.lora import freeze, split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.quantise import map_kernels, scale_sharding
from polaris_jax.models.transformer import init_params

RULES = (
    # parameters
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("lora", None),
    ("layers", None),
    # activations
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    ("act_embed", None),
)


@cache
def _boxed_shapes(config: ModelConfig) -> Any:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@cache
def param_shapes(config: ModelConfig) -> Any:
    """Shapes and dtypes of the parameters as the trainer keeps them: float32, a frozen base as `lora.freeze` has it."""
    return jax.eval_shape(lambda params: freeze(params, config), nn.unbox(_boxed_shapes(config)))


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """A pytree of `NamedSharding`, one for each parameter of the model."""
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(_boxed_shapes(config)), mesh, RULES)
    codes = config.lora is not None and config.lora.weights
    return map_kernels(shardings, scale_sharding) if codes else shardings


def sharded_params(config: ModelConfig, mesh: Mesh, seed: int) -> Any:
    """Random parameters as the trainer keeps them, created where they live: no device ever holds all of them."""
    make = lambda key: freeze(nn.unbox(init_params(config, key)), config)  # noqa: E731
    return jax.jit(make, out_shardings=param_shardings(config, mesh))(jax.random.key(seed))


def sharded_adapters(config: ModelConfig, mesh: Mesh, seed: int) -> Any:
    """New adapters of a model with LoRA, with which it computes what its base does."""
    make = lambda key: split(nn.unbox(init_params(config, key)))[0]  # noqa: E731
    return jax.jit(make, out_shardings=split(param_shardings(config, mesh))[0])(jax.random.key(seed))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of [R, T] arrays such as those of `PackedBatch`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "context"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())
