"""What each device holds in each phase of a step, from shapes alone: nothing is compiled, no array is made.

What is kept for the backward pass is asked of the model's code (`jax.vjp` on shapes); how much XLA needs beside that is
a formula that tests hold against what XLA says.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict, FrozenConfigDict

from polaris_jax.errors import UserError
from polaris_jax.models.lora import join, split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.quantise import weight_bytes
from polaris_jax.models.rope import rope_tables
from polaris_jax.models.transformer import REMAT_POLICIES, Block
from polaris_jax.ops.attention import DENSE, packed_attention
from polaris_jax.ops.paged_attention import DECODE_KERNELS
from polaris_jax.ops.token_logprobs import CHUNK_LOGITS, CHUNKS
from polaris_jax.optim.optimizer import make_optimizer, opt_state_shardings
from polaris_jax.optim.pieces import piece_count
from polaris_jax.rollout.kv_pages import pages_for
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.rollout.pools import page_bytes, pool_pages
from polaris_jax.rollout.replica import PREFILL_CHUNKS, PREFILL_TOKENS, bucket
from polaris_jax.sharding.mesh import AXES, axis_sizes
from polaris_jax.sharding.rows import row_groups
from polaris_jax.sharding.rules import param_shapes, param_shardings
from polaris_jax.training.platform import apply_piece
from polaris_jax.training.update import adds_in_place
from polaris_jax.types import PackedBatch

SAMPLING, TRAINING = ("weight sync", "prefill", "decode"), ("gradients", "apply")
PHASES = (*SAMPLING, *TRAINING)
PROBE = 13 * 512  # tokens of a row; longer rows keep as much per token, and no model is as wide
MASTER = 4  # bytes of a float32 parameter, gradient or moment
LOGITS_COPIES = 3  # float32 arrays as large as the logits of a chunk that its backward pass holds at once
APPLY_COPIES = 2.5  # of the parameters, float32, that an optimizer and the clip hold beside state and gradients at most
FUSED_COPIES = 0.1  # the same where an accelerator's kernels compute them where they need them
CPU_COPIES = 1.9  # the same of AdamW on CPUs
OFFLOAD_COPIES = 0.6  # the same where moments come from the host and go back there
IN_FLIGHT = 2  # layers whose activations are on the device at once where they go to the host
PIECE_COPIES = 10  # the same of a piece, where an array is updated in pieces: before, meanwhile and after
LAYER_FACTOR = 1.1  # backward pass of a layer: what `none` would keep of it, and this much for what flows back
ADAPTED_FACTOR = 1.4  # the same with LoRA, where a product and its adapter's are added up


def plan_mesh(shape: ConfigDict | dict[str, int], devices: int) -> AbstractMesh:
    """The mesh of `config.mesh` on devices that need not exist. Raises UserError as `make_mesh` does."""
    return AbstractMesh(tuple(axis_sizes(shape, devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def phase_memory(
    model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, platform: str = "tpu"
) -> dict[str, dict[str, float]]:
    """Bytes on a device, by phase and component.

    weights, moments: the training state, which stays all through the step, but for moments that `optimizer.offload`
    keeps on the host (`host_memory`); with LoRA its base is among the weights. reference: of the KL term. sampler: its
    weights, as `rollout.weights` says, without those of the trainer that it reads. cache: the page pool. gradients:
    summed and new ones. activations: kept for the backward pass. workspace: all else that a program needs at once.
    platform: of the devices, "tpu", "gpu" or "cpu". Raises UserError where a parameter does not split evenly over the
    mesh.
    """
    way = PLATFORMS[platform]
    item = jnp.dtype(model.dtype).itemsize
    trained, frozen = state_weights(model, mesh)
    replica = AbstractMesh(tuple(mesh.shape[a] if a == "tensor" else 1 for a in AXES), AXES, axis_types=mesh.axis_types)
    state = {"weights": trained + frozen}
    if not config.optimizer.offload:
        state["moments"] = moment_bytes(model.replace(remat="none"), mesh, FrozenConfigDict(config.optimizer))
    if config.algorithm.kl and model.lora is None:
        state["reference"] = trained
    shared = way.shares(model, mesh, config.rollout.weights)
    sampler = 0.0 if shared else parameter_bytes(model, replica, item)
    if config.rollout.weights:
        sampler *= weight_bytes(model, config.rollout.weights) / weight_bytes(model, "")
    sampler += way.transpose * item * model.vocab_size * model.hidden_size / replica.size
    sampling = state | {"sampler": sampler}
    pool = float(cache_pages(model, config, mesh) * page_bytes(model, mesh, config.rollout))
    cached, gathered = sampling | {"cache": pool}, 0 if way.kernels in DECODE_KERNELS else pool
    kept = {"cache": pool} if way.keep_pools([()]) else {}
    activations, workspace = backward_memory(model, config, mesh, max(config.updates.row_lengths))
    if added := adds_in_place(model, mesh):
        workspace += MASTER * model.vocab_size * model.hidden_size  # the unembedding's gradient, before it is added
    return {
        "weight sync": sampling | {"workspace": 0.0 if shared else _weight_sync(model, replica)},
        "prefill": cached | {"workspace": _prefill(model, mesh)},
        "decode": cached | {"workspace": _decode(model, config, mesh) + gathered},
        "gradients": state
        | kept
        | {"gradients": (1 if added else 2) * trained, "activations": activations, "workspace": workspace},
        "apply": state | kept | {"gradients": trained, "workspace": _apply(model, config, mesh, platform)},
    }


def host_memory(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh) -> dict[str, float]:
    """Bytes that a device keeps in its host's memory instead of its own, by component; empty where it keeps none there.

    moments: all through the step. activations: of the largest pass, while its gradients are computed.
    """
    found = {}
    if config.optimizer.offload:
        found["moments"] = moment_bytes(model.replace(remat="none"), mesh, FrozenConfigDict(config.optimizer))
    if model.remat == "offload":
        row = max(config.updates.row_lengths)
        kept = kept_bytes(one_device(model, mesh.shape["tensor"]), row) * tokens_on_device(config, mesh, row)
        found["activations"] = model.num_hidden_layers * kept
    return found


def _apply(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, platform: str) -> float:
    """What the optimizer computes of the parameters that it updates at once, or of the largest piece."""
    c, most, at_once, piece = config.optimizer, apply_piece(mesh, platform), 0.0, 0.0
    model = model.replace(remat="none")
    shapes = jax.tree.leaves(split(param_shapes(model))[0])
    for x, (size, _) in zip(shapes, _shards(model, mesh)[0], strict=True):
        count = piece_count(x, most)
        at_once, piece = at_once + size * (count == 1), max(piece, size / count * (count > 1))
    over_devices = c.moments == "int8" and mesh.size > 1  # blocks that XLA does not take in one pass
    if c.name != "adamw" or (over_devices and platform != "cpu"):
        copies = APPLY_COPIES
    elif platform == "cpu":
        copies = CPU_COPIES
    else:
        copies = OFFLOAD_COPIES if c.offload else FUSED_COPIES
    return MASTER * (copies * at_once + PIECE_COPIES * piece)


def cache_pages(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh) -> int:
    """Pages of each copy of the sampler, as the engine reckons them."""
    return pool_pages(model, mesh, config.rollout, bucket(sequence_pages(config)))


def sequence_pages(config: ConfigDict) -> int:
    """Pages of the longest sequence."""
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens - 1
    return pages_for(longest, config.rollout.page_size)


def parameter_bytes(model: ModelConfig, mesh: AbstractMesh, item: int) -> float:
    """Bytes of all parameters on one device, `item` each, laid out by the rules table; of no adapters."""
    return item * sum(size for size, _ in _shards(model.replace(remat="none", lora=None), mesh)[0])


def state_weights(model: ModelConfig, mesh: AbstractMesh) -> tuple[float, float]:
    """Bytes on one device of the parameters that are trained, and of a frozen base as the trainer keeps it."""
    parts = _shards(model.replace(remat="none"), mesh)
    trained, frozen = (float(sum(size * item for size, item in part)) for part in parts)
    return trained, frozen


def _weight_sync(model: ModelConfig, replica: AbstractMesh) -> float:
    """The largest parameter, before and after it is laid out; adapters are merged layer by layer, in float32."""
    if model.lora is not None:
        return MASTER * block_parameters(one_device(model, replica.shape["tensor"]))
    largest = max(size for size, _ in _shards(model.replace(remat="none"), replica)[0])
    return largest * jnp.dtype(model.dtype).itemsize


@cache
def moment_bytes(model: ModelConfig, mesh: AbstractMesh, optimizer: FrozenConfigDict) -> float:
    """Bytes of what the optimizer keeps beside the parameters, its moments, on one device."""
    chain, shapes = make_optimizer(optimizer, 1), split(param_shapes(model))[0]
    laid: list[Any] = []

    def init(shapes):  # traced, since optax makes scalars of the state where it lays it out
        laid.append(opt_state_shardings(chain, shapes, split(param_shardings(model, mesh))[0], mesh).inner)
        return chain.init(shapes)

    kept = jax.eval_shape(init, shapes)
    arrays = zip(jax.tree.leaves(kept), jax.tree.leaves(laid[0]), strict=True)
    return float(sum(math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize for x, where in arrays))


@cache
def _shards(model: ModelConfig, mesh: AbstractMesh) -> list[list[tuple[int, int]]]:
    """Size on one device, and bytes of an item, of each parameter that is trained, and of each that is frozen."""
    parts = zip(split(param_shapes(model)), split(param_shardings(model, mesh)), strict=True)

    def one(x: jax.ShapeDtypeStruct, sharding: Any) -> tuple[int, int]:
        return math.prod(sharding.shard_shape(x.shape)), x.dtype.itemsize

    try:
        return [list(map(one, *map(jax.tree.leaves, part))) for part in parts]
    except ValueError as error:
        raise UserError(f"config.mesh: {dict(mesh.shape)} does not split the parameters evenly: {error}") from error


def tokens_on_device(config: ConfigDict, mesh: AbstractMesh, row: int) -> int:
    """Slots of a device in one call with rows of that many slots, the longest there are."""
    groups = row_groups(mesh)
    return math.ceil((config.updates.rows or groups) / groups) * row // mesh.shape["context"]


def backward_memory(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh, row: int) -> tuple[float, float]:
    """Bytes of activations and of workspace in one forward and backward pass over rows of that many slots."""
    tokens, item, tensor = tokens_on_device(config, mesh, row), jnp.dtype(model.dtype).itemsize, mesh.shape["tensor"]
    local = one_device(model, tensor)
    layers = IN_FLIGHT if model.remat == "offload" else model.num_hidden_layers
    kept = layers * kept_bytes(local, row) * tokens
    factor = LAYER_FACTOR if model.lora is None else ADAPTED_FACTOR
    layer = factor * kept_bytes(local.replace(remat="none"), row) * tokens
    if mesh.shape["context"] > 1:  # keys and values of whole rows, and their gradients
        layer += 4 * local.num_key_value_heads * model.head_dim * item * tokens * mesh.shape["context"]
    all_logits = tokens * model.vocab_size // tensor
    kept_logits = all_logits if all_logits <= CHUNK_LOGITS else 0  # else they are computed again
    logits = kept_logits + LOGITS_COPIES * min(CHUNK_LOGITS, all_logits / CHUNKS)
    gathered = 0
    if mesh.shape["fsdp"] > 1:  # the embedding and its gradient, and two layers: one in use, one on its way
        table = model.vocab_size * model.hidden_size // tensor
        master, both = (MASTER, 2) if model.lora is None else (item, 1)  # a frozen table has no gradient
        gathered = both * master * table + 2 * (master + item) * block_parameters(local)
    return kept, max(layer, 4 * logits) + gathered + _rows_bytes(config, mesh)


def _rows_bytes(config: ConfigDict, mesh: AbstractMesh) -> float:
    """All packed rows of a step lie on the devices from the start of the update; here each of them of full length."""
    sequence = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    slots = config.rollout.prompts * config.rollout.samples * sequence
    devices = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["context"]
    return len(PackedBatch._fields) * 4 * slots / devices


def _prefill(model: ModelConfig, mesh: AbstractMesh) -> float:
    """One layer's activations of a chunk, and the chunk's keys and values before and after they are cut into pages."""
    local = one_device(model, mesh.shape["tensor"])
    new = 2 * 2 * model.num_hidden_layers * local.num_key_value_heads * model.head_dim
    layer = kept_bytes(local.replace(remat="none"), PREFILL_CHUNKS[-1])
    return PREFILL_TOKENS * (new * jnp.dtype(model.dtype).itemsize + layer)


def _decode(model: ModelConfig, config: ConfigDict, mesh: AbstractMesh) -> float:
    """Logits, and keys and values of a call's steps, before and after they are cut into pages; none are gathered."""
    local = one_device(model, mesh.shape["tensor"])
    new = 2 * 2 * model.num_hidden_layers * local.num_key_value_heads * model.head_dim * config.rollout.tokens_per_call
    logits = LOGITS_COPIES * 4 * model.vocab_size
    return config.rollout.slots * (new * jnp.dtype(model.dtype).itemsize + logits)


def one_device(model: ModelConfig, tensor: int) -> ModelConfig:
    """The model whose layers are a device's part of this one's."""
    kv_heads = model.num_key_value_heads
    heads = model.num_attention_heads // tensor
    kv_heads = kv_heads // tensor if kv_heads % tensor == 0 else kv_heads
    return model.replace(
        num_attention_heads=max(heads, kv_heads),
        num_key_value_heads=kv_heads,
        intermediate_size=model.intermediate_size // tensor,
    )


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one layer."""
    return (model.num_parameters - model.replace(num_hidden_layers=0).num_parameters) // model.num_hidden_layers


@cache
def kept_bytes(model: ModelConfig, row: int) -> float:
    """Bytes per token that the backward pass of one layer keeps under `model.remat`, in rows of that many tokens."""
    tokens = row if row <= DENSE else PROBE
    kept, shared = _block_shapes(model, tokens)
    sizes = (x.size * x.dtype.itemsize for x in kept if x.shape not in shared and tokens in x.shape)
    return sum(sizes) / tokens


@cache
def _block_shapes(model: ModelConfig, tokens: int = PROBE) -> tuple[list[Any], list[tuple[int, ...]]]:
    """What one layer keeps of a row for its backward pass; shapes of its parameters and of what all layers share."""
    block = Block
    if model.remat != "none":
        block = nn.remat(Block, policy=REMAT_POLICIES[model.remat], prevent_cse=False)
    layer = block(model, packed_attention)
    x_BTD = jax.ShapeDtypeStruct((1, tokens, model.hidden_size), model.dtype)
    integers_BT = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def rest(integers_BT):
        return 0, *rope_tables(integers_BT, model), integers_BT, integers_BT

    def init(x_BTD, integers_BT):
        return nn.unbox(layer.init(jax.random.key(0), (x_BTD, None), *rest(integers_BT))["params"])

    def kept(params, x_BTD, integers_BT):
        trained, frozen = split(params)
        whole = lambda trained: {"params": join(trained, frozen)}  # noqa: E731
        run = lambda trained, x: layer.apply(whole(trained), (x, None), *rest(integers_BT))[0][0]  # noqa: E731
        return jax.vjp(run, trained, x_BTD)[1]

    params = jax.eval_shape(init, x_BTD, integers_BT)
    leaves = jax.tree.leaves(jax.eval_shape(kept, params, x_BTD, integers_BT))
    shared = jax.tree.leaves((params, jax.eval_shape(rest, integers_BT)))
    return leaves, [x.shape for x in shared]
