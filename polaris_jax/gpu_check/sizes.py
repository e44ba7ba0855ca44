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

    overrides: of configs/base.py, for every check. copied: float32 numbers that are copied, product: width of the
    square matrices that are multiplied, each `repeated` times in one program. heads: (query heads, kv heads, head
    width) of the kernels compared, the model's first. kernel_tokens: length of their rows. rollouts: (context, slots):
    as many sequences at once as slots, which end at that length; more_rollouts: after all else. decoded: of each
    sequence, what is timed. updates, more_updates: row lengths. update_tokens: about so many in one update. shortest,
    longest, step: row lengths tried for the longest that trains, `step` apart in the end. response: of each of the
    `prompts` x `samples` sequences in the whole step. least_s: no check is started with fewer seconds left; limit_s:
    seconds after which a check is given up.
    """

    overrides: Mapping[str, Any]
    copied: int
    product: int
    repeated: int
    heads: tuple[tuple[int, int, int], ...]
    kernel_tokens: int
    rollouts: tuple[tuple[int, int], ...]
    more_rollouts: tuple[tuple[int, int], ...]
    decoded: int
    updates: tuple[int, ...]
    more_updates: tuple[int, ...]
    update_tokens: int
    shortest: int
    longest: int
    step: int
    prompts: int
    samples: int
    response: int
    least_s: float
    limit_s: float

    def config(self, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
        """The config of one check, with overrides of its own."""
        return configs.override(base.get_config(), {**SHARED, **self.overrides, **(overrides or {})})

    def model(self, dtype: str = "") -> ModelConfig:
        """The model's shape; dtype: "" for the config's."""
        c = self.config().model
        return PRESETS[c.preset].replace(dtype=dtype or c.dtype, remat=c.remat)

    def rows(self, length: int) -> int:
        """Rows of that length in one update."""
        return max(self.update_tokens // length, 1)


SHARED = {"model.tokenizer": "arithmetic", "data.train": "arithmetic", "reward.workers": 2}


def _heads(first: str) -> tuple[tuple[int, int, int], ...]:
    shapes = [(m.num_attention_heads, m.num_key_value_heads, m.head_dim) for m in (PRESETS[first], *PRESETS.values())]
    return tuple(dict.fromkeys(shapes))


SIZES = {
    "tiny": Size(
        overrides={
            "model.preset": "tiny", "model.dtype": "float32", "model.remat": "none", "rollout.tokens_per_call": 8,
        },
        copied=2**20, product=256, repeated=2,
        heads=((4, 2, 32),), kernel_tokens=96, rollouts=((64, 4), (96, 2)), more_rollouts=(), decoded=32,
        updates=(64, 128), more_updates=(), update_tokens=256, shortest=128, longest=128, step=128,
        prompts=2, samples=2, response=16, least_s=0, limit_s=120,
    ),
    "4b": Size(
        overrides={"model.preset": "qwen3-4b", "optimizer.moments": "int8"},
        copied=2**30, product=8192, repeated=16,
        heads=_heads("qwen3-4b"), kernel_tokens=1500, rollouts=((1024, 128), (8192, 32), (32_768, 8)),
        more_rollouts=((1024, 8), (1024, 32), (8192, 8), (8192, 128)), decoded=128,
        updates=(4096, 16_384), more_updates=(1024,), update_tokens=16_384, shortest=4096, longest=65_536, step=2048,
        prompts=2, samples=8, response=1024, least_s=25, limit_s=240,
    ),
}  # fmt: skip
