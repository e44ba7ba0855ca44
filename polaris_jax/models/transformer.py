"""The Qwen3 / Qwen2 decoder: one module for the sampler and the trainer; only the attention function differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from polaris_jax.models.layers import Linear, RMSNorm, project
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.rope import apply_rope, rope_tables
from polaris_jax.ops.attention import packed_attention
from polaris_jax.ops.gradient_sums import look_up, use_layer

# What the backward pass finds kept of a layer: its input and nothing else (full; offload: in the host's memory), also
# what goes into and comes out of attention (attention), also the outputs of all projections (dots), or everything.
REMAT_POLICIES: dict[str, Callable | None] = {
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("q", "k", "v", "attention"),
    "dots": jax.checkpoint_policies.save_only_these_names("projection"),
    "none": None,
}

UNROLLED_LAYERS = 4  # a loop over so few layers costs more, in copies of what the backward pass needs, than it saves


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; norms q and k per head when the config says so."""

    config: ModelConfig
    attend: Callable

    @nn.compact
    def __call__(self, x_BTD, cos, sin, positions_BT, segment_ids_BT, cache, layer):
        c = self.config
        heads, kv_heads, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        B, T, D = x_BTD.shape
        q_BTHd, k_BTKd, v_BTKd = (
            y.reshape(B, T, -1, d)
            for y in project(
                x_BTD,
                Linear(heads * d, ("embed", "heads"), c.dtype, c.attention_bias, c.lora, name="q"),
                Linear(kv_heads * d, ("embed", "kv"), c.dtype, c.attention_bias, c.lora, name="k"),
                Linear(kv_heads * d, ("embed", "kv"), c.dtype, c.attention_bias, c.lora, name="v"),
            )
        )
        if c.qk_norm:
            q_BTHd = RMSNorm(c.rms_norm_eps, c.dtype, name="q_norm")(q_BTHd)
            k_BTKd = RMSNorm(c.rms_norm_eps, c.dtype, name="k_norm")(k_BTKd)
        q_BTHd = checkpoint_name(apply_rope(q_BTHd, cos, sin), "q")
        k_BTKd = checkpoint_name(apply_rope(k_BTKd, cos, sin), "k")
        v_BTKd = checkpoint_name(v_BTKd, "v")
        out_BTHd, cache = self.attend(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT, cache, layer)
        out_BTHd = checkpoint_name(out_BTHd, "attention")
        out_BTN = out_BTHd.reshape(B, T, heads * d)
        return Linear(D, ("heads", "embed"), c.dtype, lora=c.lora, name="o")(out_BTN), cache


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        gate_BTF, up_BTF = project(
            x_BTD,
            Linear(c.intermediate_size, ("embed", "mlp"), c.dtype, lora=c.lora, name="gate"),
            Linear(c.intermediate_size, ("embed", "mlp"), c.dtype, lora=c.lora, name="up"),
        )
        down = Linear(c.hidden_size, ("mlp", "embed"), c.dtype, lora=c.lora, name="down")
        return down(nn.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Pre-norm attention and mlp. The carry is (x, cache); `layer` is the scanned layer index."""

    config: ModelConfig
    attend: Callable

    @nn.compact
    def __call__(self, carry, layer, cos, sin, positions_BT, segment_ids_BT):
        c = self.config
        x_BTD, cache = carry
        x_BTD = checkpoint_name(x_BTD, "input")
        normed_BTD = RMSNorm(c.rms_norm_eps, c.dtype, name="attention_norm")(x_BTD)
        out_BTD, cache = Attention(c, self.attend, name="attention")(
            normed_BTD, cos, sin, positions_BT, segment_ids_BT, cache, layer
        )
        x_BTD = x_BTD + out_BTD
        x_BTD = x_BTD + Mlp(c, name="mlp")(RMSNorm(c.rms_norm_eps, c.dtype, name="mlp_norm")(x_BTD))
        return (nn.with_logical_constraint(x_BTD, ("batch", "length", "act_embed")), cache), None


class Transformer(nn.Module):
    """Tokens to final hidden states; `unembed` turns those into logits.

    attend(q_BTHd, k_BTKd, v_BTKd, positions_BT, segment_ids_BT, cache, layer) -> (out_BTHd, cache) is the attention:
    `ops.attention.packed_attention` for whole sequences (cache is None), a cached one in the rollout engine. `cache`
    is any pytree for all layers; `layer` is traced where the layers run in a loop, else an int.

    The parameters "layers" may also be a list with those of each layer, which then run one after the other.

    Where the collection "sums" has entries "layers" and "embedding", the backward pass adds the gradients of these
    parameters to them (ops/gradient_sums.py); further uses take what comes back under "sums".

    __call__: tokens, positions, segment_ids int32 [B, T] (segment 0 is padding; tokens see only their own segment,
    up to their own position) -> hidden states [B, T, D] in `config.dtype`, and the cache.
    """

    config: ModelConfig
    attend: Callable = packed_attention

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, segment_ids_BT, cache: Any = None):
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        embedding_VD = self.param("embedding", init, (c.vocab_size, c.hidden_size), jnp.float32)
        if self.has_variable("sums", "embedding"):
            x_BTD, sums_VD = look_up(embedding_VD, self.get_variable("sums", "embedding"), tokens_BT)
            self.put_variable("sums", "embedding", sums_VD)
        else:
            x_BTD = embedding_VD[tokens_BT]
        x_BTD = x_BTD.astype(c.dtype)
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "length", "act_embed"))
        cos, sin = rope_tables(positions_BT, c)
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=unrolled(c))
        shared = cos, sin, positions_BT, segment_ids_BT
        layers = None if self.is_initializing() else self.get_variable("params", "layers")
        if layers is not None and unrolled(c) and not isinstance(layers, list):
            layers = unstack(layers)
        if isinstance(layers, list):
            for layer, params in enumerate(layers):
                one = block(c, self.attend, parent=None)
                (x_BTD, cache), _ = one.apply({"params": params}, (x_BTD, cache), layer, *shared)
        elif self.has_variable("sums", "layers"):
            one = block(c, self.attend, parent=None)

            def step(carry, of_layer):
                x_BTD, sums = carry
                params, sums = use_layer(of_layer[0], sums, of_layer[1])
                (x_BTD, _), _ = one.apply({"params": params}, (x_BTD, None), of_layer[1], *shared)
                return (x_BTD, sums), None

            carry = x_BTD, self.get_variable("sums", "layers")
            (x_BTD, sums), _ = jax.lax.scan(step, carry, (layers, jnp.arange(c.num_hidden_layers)))
            self.put_variable("sums", "layers", sums)
        else:
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, *[nn.broadcast] * len(shared)),
                length=c.num_hidden_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c, self.attend, name="layers")
            (x_BTD, cache), _ = layers((x_BTD, cache), jnp.arange(c.num_hidden_layers), *shared)
        x_BTD = RMSNorm(c.rms_norm_eps, c.dtype, name="final_norm")(x_BTD)
        if not c.tie_word_embeddings:  # created here, used by `unembedding`
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
            self.param("unembedding", init, (c.vocab_size, c.hidden_size), jnp.float32)
        return x_BTD, cache


def unrolled(config: ModelConfig) -> bool:
    """Whether the trainer runs the layers one by one rather than in a loop."""
    return config.num_hidden_layers <= UNROLLED_LAYERS


def unstack(stacked: Any) -> list[Any]:
    """The parameters of each layer."""
    leaves, structure = jax.tree.flatten(stacked)
    apart = ([x[0] for x in jax.lax.split(leaf, [1] * len(leaf))] for leaf in leaves)  # whose transpose concatenates
    return [jax.tree.unflatten(structure, layer) for layer in zip(*apart, strict=True)]


def unembedding(params: Any, config: ModelConfig) -> jax.Array:
    """The [V, D] matrix whose rows score each vocabulary entry: the embedding itself when tied."""
    return params["embedding" if config.tie_word_embeddings else "unembedding"]


def unembed(hidden: jax.Array, unembedding_VD: jax.Array) -> jax.Array:
    """Logits float32 [..., V] of hidden states [..., D], accumulated in float32."""
    kernel_VD = unembedding_VD.astype(hidden.dtype)
    return jnp.einsum("...D,VD->...V", hidden, kernel_VD, preferred_element_type=jnp.float32)


def init_params(config: ModelConfig, key: jax.Array) -> Any:
    """Random float32 parameters with their adapters, boxed with their logical axis names (`flax.linen.Partitioned`)."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Transformer(config).init(key, tokens, tokens, tokens)["params"]
