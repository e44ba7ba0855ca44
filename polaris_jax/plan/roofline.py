"""Work and time of each phase of a step: what must be computed, read and sent, and how long that takes at the least.

XLA's cost analysis counts the body of a loop once, and layers, decoding steps and chunks are loops. So the work is
counted here, from the model's shape, each loop as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from polaris_jax.errors import UserError
from polaris_jax.models.flops import forward_flops, train_flops
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.quantise import weight_bytes
from polaris_jax.plan.hardware import Hardware
from polaris_jax.plan.memory import (
    MASTER,
    cache_pages,
    host_memory,
    kept_bytes,
    one_device,
    state_weights,
    tokens_on_device,
)
from polaris_jax.rollout.pools import page_bytes
from polaris_jax.sharding.mesh import AXES
from polaris_jax.sharding.rows import row_groups

COLLECTIVE_S = 10e-6  # of a collective too small for its bytes to matter, such as those of decoding. Ours


@dataclass(frozen=True)
class Assumptions:
    """What neither config nor hardware tells. All values are ours: none is published for the recipe.

    mean_response: mean response length as a share of the limit; see `lengths`. prompt: mean tokens of a prompt.
    packing: share of the slots of packed rows that hold tokens. achieved: share of the roofline's speed that a run
    reaches.
    """

    mean_response: float = 0.5
    prompt: int = 256
    packing: float = 0.95
    achieved: float = 0.4


@dataclass(frozen=True)
class Work:
    """Of one device in one step, the most loaded one.

    flops: run, recomputation and padding included. useful: what the model needs of them. bytes: read from and written
    to memory. sent: bytes by mesh axis. collectives: small ones, that are waited for one after another. host: bytes
    from and to the host's memory.
    """

    flops: float = 0.0
    useful: float = 0.0
    bytes: float = 0.0
    sent: Mapping[str, float] = field(default_factory=dict)
    collectives: float = 0.0
    host: float = 0.0


def lengths(limit: int, mean_response: float) -> tuple[float, float]:
    """Mean and mean square of response lengths limit * u ** a, u even in 0 .. 1, where a gives the mean.

    At a mean of half the limit a is 1, and all lengths are as likely. The longest response always reaches the limit.
    """
    a = 1 / mean_response - 1
    return limit * mean_response, limit**2 / (2 * a + 1)


def phase_work(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, assumed: Assumptions) -> dict[str, Work]:
    """The work of each phase of `memory.PHASES` in one step."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    (trained, frozen), sampler = state_weights(model, mesh), weight_bytes(model, config.rollout.weights) / tensor
    prompts = replica_sequences(config, mesh) // config.rollout.samples
    prefill = forward_flops(model, prompts * assumed.prompt, prompts * assumed.prompt**2 / 2) / tensor
    return {
        "weight sync": Work(bytes=trained + frozen + sampler, sent={"fsdp": sampler * (fsdp - 1) / fsdp}),
        "prefill": Work(flops=prefill, useful=prefill, bytes=sampler),
        "decode": _decode(model, config, mesh, assumed),
        "gradients": _gradients(model, config, mesh, assumed),
        # reads weights, gradients and two moments, writes all but the gradients
        "apply": Work(bytes=7 * trained, host=2 * host_memory(model, config, mesh).get("moments", 0.0)),
    }


def replica_sequences(config: ConfigDict, mesh: AbstractMesh) -> int:
    """Responses of a step that the most loaded copy of the sampler decodes; a group's samples stay together."""
    copies = mesh.size // mesh.shape["tensor"]
    return math.ceil(config.rollout.prompts / copies) * config.rollout.samples


def running(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, assumed: Assumptions) -> int:
    """Sequences that a copy of the sampler decodes at once: the slots, all there are, or what the page pool holds."""
    tokens = config.rollout.page_size * cache_pages(model, config, mesh)
    return max(1, min(config.rollout.slots, replica_sequences(config, mesh), int(tokens / mean_held(config, assumed))))


def mean_held(config: ConfigDict, assumed: Assumptions) -> float:
    """Tokens that a running sequence has in the cache, its share of the prompt included.

    One that grows to l tokens holds l / 2 on average while it runs: E[l^2] / 2 E[l] over time and sequences.
    """
    mean, square = lengths(config.rollout.max_response_tokens, assumed.mean_response)
    return assumed.prompt / config.rollout.samples + square / (2 * mean)


def decode_steps(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, assumed: Assumptions) -> float:
    """Decoding steps of a copy of the sampler: as long as its longest response, and as many as its sequences need."""
    limit = config.rollout.max_response_tokens
    total = replica_sequences(config, mesh) * lengths(limit, assumed.mean_response)[0]
    return max(limit, total / running(model, config, mesh, assumed))


def _decode(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, assumed: Assumptions) -> Work:
    """Every step reads the weights, and for each running sequence its keys and values."""
    weights, tensor = weight_bytes(model, config.rollout.weights), mesh.shape["tensor"]
    mean, square = lengths(config.rollout.max_response_tokens, assumed.mean_response)
    sequences, steps = replica_sequences(config, mesh), decode_steps(model, config, mesh, assumed)
    pairs = sequences * (assumed.prompt * mean + square / 2)  # (new token, token that it sees)
    flops = forward_flops(model, sequences * mean, pairs) / tensor
    token_bytes = page_bytes(model, mesh, config.rollout) / config.rollout.page_size
    read = steps * weights / tensor + pairs * token_bytes
    collectives = 2 * model.num_hidden_layers * steps if tensor > 1 else 0.0
    return Work(flops, flops, read, collectives=collectives)


def _gradients(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, assumed: Assumptions) -> Work:
    """All accumulation calls of a step."""
    shape, item, D = mesh.shape, jnp.dtype(model.dtype).itemsize, model.hidden_size
    mean, square = lengths(config.rollout.max_response_tokens, assumed.mean_response)
    sequences = config.rollout.prompts * config.rollout.samples
    tokens = sequences * (assumed.prompt + mean)
    pairs = sequences * (assumed.prompt**2 + 2 * assumed.prompt * mean + square) / 2
    attention = forward_flops(model, 0, pairs)
    # beside what remat computes again: logits, chunk by chunk, and the scores of attention, block by block
    again = recomputed_flops(model, tokens, pairs) + 2.0 * model.vocab_size * D * tokens + attention / 2
    groups, padding = row_groups(mesh), 1 / assumed.packing  # slots for each token
    whole = train_flops(model, tokens, pairs)
    useful, flops = whole / mesh.size, (whole + again) / mesh.size * padding

    slots = tokens * padding / (groups * shape["context"])
    row = max(config.updates.row_lengths)
    calls = math.ceil(slots / tokens_on_device(config, mesh, row))
    local = one_device(model, shape["tensor"])
    (trained, frozen), layers = state_weights(model, mesh), model.num_hidden_layers
    computed = item * model.num_parameters / shape["tensor"]  # bytes of weights in the compute dtype
    stored = frozen * shape["fsdp"] if model.lora else MASTER * computed / item
    learnt = MASTER * (model.num_adapter_parameters if model.lora else model.num_parameters) / shape["tensor"]
    touched = 2 * kept_bytes(local.replace(remat="none"), row)  # written, and read again
    passes = 2 if model.remat == "none" else 3  # over the weights
    read = calls * (passes * computed + 4 * trained) + slots * layers * touched
    ring = {axis: (shape[axis] - 1) / shape[axis] for axis in AXES}
    sent = {
        "fsdp": calls * (2 * stored + learnt) * ring["fsdp"],  # weights for both passes, gradients back
        "data": calls * 2 * trained * ring["data"],
        "tensor": slots * layers * 2 * passes * 2 * D * item * ring["tensor"],
        "context": slots * layers * (passes + 1) * 2 * local.num_key_value_heads * model.head_dim * item
        * shape["context"] * ring["context"],
    }  # fmt: skip
    offloaded = 2 * slots * layers * kept_bytes(local, row) if model.remat == "offload" else 0.0
    return Work(flops, useful, read, sent, host=offloaded)


def recomputed_flops(model: ModelConfig, tokens: float, pairs: float) -> float:
    """What the backward pass computes again of the layers under `model.remat`; nothing needs the mlp's last product.

    "attention" is counted as "full", of which it leaves out a part.
    """
    if model.remat == "none":
        return 0.0
    if model.remat == "dots":
        return forward_flops(model, 0, pairs)
    outside = model.vocab_size * model.hidden_size
    down = model.num_hidden_layers * model.intermediate_size * model.hidden_size
    return forward_flops(model, tokens, pairs) - 2.0 * (outside + down) * tokens


def seconds(work: Work, hardware: Hardware, mesh: AbstractMesh, dtype: str) -> tuple[float, str]:
    """The least time that the work takes, and what it is spent on: "compute", "memory", "network", "host" or "latency".

    The first four go on at the same time, small collectives do not. Raises UserError where the device has no such
    dtype.
    """
    if dtype not in hardware.flops:
        raise UserError(
            f"config.model.dtype: the device does not multiply {dtype}; expected {' or '.join(hardware.flops)}"
        )
    times = {
        "compute": work.flops / hardware.flops[dtype],
        "memory": work.bytes / hardware.bandwidth,
        "network": sum(size / axis_speed(hardware, mesh, axis) for axis, size in work.sent.items()),
        "host": work.host / hardware.host,
    }
    bound, waits = max(times, key=times.__getitem__), work.collectives * COLLECTIVE_S
    return times[bound] + waits, "latency" if waits > times[bound] else bound


def axis_speed(hardware: Hardware, mesh: AbstractMesh, axis: str) -> float:
    """Bytes/s that a device sends along an axis: the network's where the axis leaves the machine.

    Devices of a machine lie side by side on the last axes.
    """
    return hardware.link if axis_span(mesh, axis) <= hardware.machine else hardware.network


def axis_span(mesh: AbstractMesh, axis: str) -> int:
    """How many devices apart the first and the last of an axis lie, both counted."""
    return math.prod(mesh.shape[inner] for inner in AXES[AXES.index(axis) :])
