"""Our parameter tree against Hugging Face's tensor names: the one table that import and export both read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax

from polaris_jax.models.presets import ModelConfig
from polaris_jax.sharding.rules import param_shapes

_TENSORS = {
    "embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/attention/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/q/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/attention/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/k/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/attention/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/v/bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/attention/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/attention/q_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers/attention/k_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "final_norm/scale": "model.norm.weight",
    "unembedding": "lm_head.weight",
}


@dataclass(frozen=True)
class Leaf:
    """One parameter and the tensors that hold it.

    path: where it is in our tree, joined by "/". shape: its shape there.
    names: the tensor of each layer where the parameter is stacked over layers, else the one tensor.
    stacked: the first axis is the layer. transposed: a kernel is [in, out] here and [out, in] there.
    """

    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each of its tensors in a checkpoint."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def leaves(config: ModelConfig) -> Iterator[Leaf]:
    """Every parameter of the model, in the order of a flattened tree; of one with LoRA, of its base."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(param_shapes(config.replace(lora=None)))[0]:
        path = "/".join(key.key for key in keys)
        stacked = path.startswith("layers/")
        layers = range(config.num_hidden_layers) if stacked else (0,)
        names = tuple(_TENSORS[path].format(layer) for layer in layers)
        yield Leaf(path, leaf.shape, names, stacked, transposed=path.endswith("/kernel"))
