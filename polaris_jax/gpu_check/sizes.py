"""How large the checks are: a model of 4B for accelerators, a tiny one for CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from configs import base
from polaris_jax import config as configs
from polaris_jax.models.presets import PRESETS, ModelConfig


@dataclass(frozen=True)
class Size:
    """One size of all checks. Lengths are in tokens.

    overrides: of configs/base.py, for every check. heads: (query heads, kv heads, head width) of the kernels compared.
    kernel_tokens: length of their rows. rollouts: (context, slots): as many sequences at once as slots, which end at
    that length. decoded: of each, what is timed. updates: row lengths. update_tokens: about so many in one update.
    shortest, longest, step: row lengths tried for the longest that trains, `step` apart in the end. response: of each
    of the `prompts` x `samples` sequences in the whole step. limit_s: seconds that a check may take.
    """

    overrides: Mapping[str, Any]
    heads: tuple[tuple[int, int, int], ...]
    kernel_tokens: int
    rollouts: tuple[tuple[int, int], ...]
    decoded: int
    updates: tuple[int, ...]
    update_tokens: int
    shortest: int
    longest: int
    step: int
    prompts: int
    samples: int
    response: int
    limit_s: float

    def config(self, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
        """The config of one check, with overrides of its own."""
        return configs.override(base.get_config(), {**SHARED, **self.overrides, **(overrides or {})})

    def model(self, dtype: str = "") -> ModelConfig:
        """The model's shape; dtype: "" for the config's."""
        c = self.config().model
        return PRESETS[c.preset].replace(dtype=dtype or c.dtype, remat=c.remat)


SHARED = {"model.tokenizer": "arithmetic", "data.train": "arithmetic", "reward.workers": 2}

SIZES = {
    "tiny": Size(
        overrides={
            "model.preset": "tiny", "model.dtype": "float32", "model.remat": "none", "rollout.tokens_per_call": 8,
        },
        heads=((4, 2, 32),), kernel_tokens=150, rollouts=((128, 4), (256, 8)), decoded=64, updates=(128, 256),
        update_tokens=512, shortest=128, longest=384, step=128, prompts=2, samples=4, response=32, limit_s=120,
    ),
    "4b": Size(
        overrides={"model.preset": "qwen3-4b", "optimizer.moments": "int8"},
        heads=tuple(sorted({(m.num_attention_heads, m.num_key_value_heads, m.head_dim) for m in PRESETS.values()})),
        kernel_tokens=1500, decoded=256, updates=(1024, 4096, 16_384), update_tokens=16_384,
        rollouts=tuple((context, slots) for context in (1024, 8192, 32_768) for slots in (8, 32, 128)),
        shortest=4096, longest=65_536, step=2048, prompts=2, samples=8, response=1024, limit_s=240,
    ),
}  # fmt: skip
