"""Every device function of a run, lowered for devices that need not be there, so that compiling it tells what it needs.

`make .venv/compilers/installed` installs the compilers, beside the other packages; see `topology_devices`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.models import lora
from polaris_jax.models.presets import ModelConfig
from polaris_jax.optim.optimizer import init_opt_state
from polaris_jax.rl.packing import rows_of
from polaris_jax.rollout import replica
from polaris_jax.rollout.engine import sampler_model
from polaris_jax.rollout.kv_pages import pages_for
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.rollout.pools import pool_layout, pool_pages
from polaris_jax.rollout.programs import Chunks, Program, Slots
from polaris_jax.rollout.sampling import Numbers, Sampling, split
from polaris_jax.rollout.weight_sync import WeightSync, replica_meshes
from polaris_jax.sharding.rows import row_groups
from polaris_jax.sharding.rules import param_shapes, param_shardings, replicated, rows_sharding
from polaris_jax.training.state import TrainState, stage_optimizer, state_shardings
from polaris_jax.training.update import make_accumulate, make_apply, make_logprobs
from polaris_jax.types import PackedBatch

GPUS_OF_A_HOST = 8
CUDNN = 91_000  # version, as cuDNN counts; see HOPPER, whose description is the name by which JAX's kernels know a GPU
GPUS = {  # name -> device memory in bytes, memory bandwidth in bytes/s; all else is that of any Hopper SXM card
    "h100": (85_899_345_920, 3_352_000_000_000),
    "h200": (151_397_597_184, 4_800_000_000_000),
}
HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth} device_memory_size: {memory} cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 9 }}
device_description_str: "NVIDIA {name}"
"""


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """Devices to compile for, such as "v5e:2x2", "v5p:4x4x4", "v6e:4x4", "h100:8" or "h200:1".

    Raises UserError where the topology is unknown or the compiler for it is not installed.
    """
    kind, _, shape = topology.partition(":")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # of the metadata server, which only a TPU machine has
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at a time
    try:
        if kind in GPUS:
            memory, bandwidth = GPUS[kind]
            target = HOPPER.format(name=kind.upper(), memory=memory, bandwidth=bandwidth)
            hosts = max(int(shape) // GPUS_OF_A_HOST, 1)
            shape = f"1x{hosts}x{int(shape) // hosts}"
            described = topologies.get_topology_desc(kind, "cuda", target_config=target, topology=shape)
        else:
            described = topologies.get_topology_desc(topology, "tpu")
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"topology {topology!r}: unknown, or its compiler is not found; `make .venv/compilers/installed`, then set "
            f"PYTHONPATH=.venv/compilers JAX_PLATFORMS=cpu ({str(error).splitlines()[0]})"
        ) from error
    return described.devices


def lower_all(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> dict[str, jax.stages.Lowered]:
    """Each device function of one stage at its largest shapes; call `.compile()` on what comes back.

    Keys: "accumulate/T" for each row length T; "forward/T" where old or reference log-probs need it; "apply";
    "weight_sync"; and for one copy of the sampler "prefill", "copy" and "decode". mesh: the trainer's, from
    `make_mesh(config.mesh, topology_devices(...))` or of devices that exist.
    """
    with cudnn_of(mesh):
        return lower_training(model, config, mesh) | lower_sampling(model, config, mesh)


def cudnn_of(mesh: Mesh) -> AbstractContextManager:
    """Makes JAX, which asks this machine's cuDNN for its version while it traces, take the target's as given."""
    if mesh.devices.flat[0].platform != "gpu" or jax.default_backend() == "gpu":
        return nullcontext()
    return mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", return_value=CUDNN)


def lower_training(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> dict[str, jax.stages.Lowered]:
    """What an update runs: see `lower_all`."""
    shardings = state_shardings(model, config, mesh)
    params = _params(model, shardings.params)
    trained, _ = lora.split(params)
    start = jax.eval_shape(lambda trained: init_opt_state(stage_optimizer(config), trained, model.dtype), trained)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = jax.tree.map(_laid, TrainState(step, params, start), shardings)
    accumulate, scalar = make_accumulate(model, config, mesh), jax.ShapeDtypeStruct((), jnp.float32)
    forward = jax.jit(make_logprobs(model, mesh), out_shardings=(rows_sharding(mesh),) * 2)
    several, with_kl = config.updates.minibatches * config.updates.epochs > 1, config.algorithm.kl > 0
    lowered = {}
    for length in config.updates.row_lengths:
        rows = _rows(rows_of(config.updates, length, row_groups(mesh)), length, mesh)
        if several or with_kl:
            lowered[f"forward/{length}"] = forward.lower(params, rows, scalar)
        olds = {"old_logprobs": several, "reference_logprobs": with_kl}
        rows = rows._replace(**{name: rows.advantages for name, used in olds.items() if used})
        rest = params, rows, scalar, scalar, scalar, scalar
        lowered[f"accumulate/{length}"] = accumulate.lower(trained, *rest)
    totals = jax.tree.map(partial(_laid, sharding=replicated(mesh)), accumulate.eval_shape(trained, *rest)[1])
    usable = jax.ShapeDtypeStruct((), jnp.bool_)
    return lowered | {"apply": make_apply(model, config, mesh).lower(state, trained, totals, scalar, usable)}


def lower_sampling(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> dict[str, jax.stages.Lowered]:
    """What a rollout runs: see `lower_all`."""
    c, model = config.rollout, sampler_model(model, config.rollout)
    sampler_mesh = replica_meshes(mesh)[0]
    sync = WeightSync(model, mesh, [sampler_mesh], c.weights)
    trained = _params(model, param_shardings(model, mesh))
    lowered = {"weight_sync": sync.cast.lower(trained)}

    longest = replica.bucket(pages_for(config.data.max_prompt_tokens + c.max_response_tokens - 1, c.page_size))
    pool, sharding = pool_layout(model, sampler_mesh, pool_pages(model, mesh, c, longest), c.page_size)
    pages = (jax.ShapeDtypeStruct(pool, c.cache_dtype or model.dtype, sharding=sharding),) * 2
    cast = jax.tree.map(_laid, sync.cast.eval_shape(trained), sync.replica_shardings[0])
    run = replica.Programs(model, c.tokens_per_call, PLATFORMS[mesh.devices.flat[0].platform])
    sampling, _ = split(Sampling(c.temperature, c.top_p, c.top_k, c.max_response_tokens))

    T = -(-replica.PREFILL_CHUNKS[-1] // c.page_size) * c.page_size
    B, S = 1 if run.platform.few_programs else max(replica.PREFILL_TOKENS // T, 1), c.slots
    chunks = Chunks(_int(B, T), _int(B), _int(B, longest), _int(B, T // c.page_size))
    spread = pages_for(c.tokens_per_call + c.page_size - 1, c.page_size)
    keys, scalar = jax.ShapeDtypeStruct((S, 2), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
    slots = Slots(_int(S), _int(S), _int(S), _int(S), keys, _int(S, longest), _int(S, spread))
    numbers = Numbers(_int(1), scalar, scalar, _int(0))
    with jax.set_mesh(sampler_mesh):
        lowered["prefill"] = run.prefill.lower(model, run.platform, cast, pages, chunks)
        lowered["copy"] = run.copy.lower(pages, _int(replica.COPIES), _int(replica.COPIES))
        program = Program(model, sampling, run.steps, run.platform)
        lowered["decode"] = run.decode.lower(program, cast, pages, slots, numbers, _int())
    return lowered


def _params(model: ModelConfig, shardings: Any) -> Any:
    return jax.tree.map(_laid, param_shapes(model), shardings)


def _rows(count: int, length: int, mesh: Mesh) -> PackedBatch:
    """A batch of packed rows."""
    dtypes = [jnp.int32] * 4 + [jnp.float32] * 3 + [jnp.bool_]
    return PackedBatch(*(jax.ShapeDtypeStruct((count, length), d, sharding=rows_sharding(mesh)) for d in dtypes))


def _laid(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _int(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
