"""Configs: load, override, check, and resolve stages. The keys and their defaults are in `configs/base.py`."""

from __future__ import annotations

import difflib
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from polaris_jax.errors import UserError, redact
from polaris_jax.loggers import LOGGERS
from polaris_jax.models.presets import LORA_TARGETS, Lora
from polaris_jax.models.quantise import CODES
from polaris_jax.models.transformer import REMAT_POLICIES
from polaris_jax.optim.moments import MOMENTS
from polaris_jax.optim.optimizer import KEEPS_MOMENTS, OPTIMIZERS, SCHEDULES
from polaris_jax.rewards.pool import MIN_MEMORY_BYTES
from polaris_jax.rl.advantages import ADVANTAGES
from polaris_jax.rl.losses import LOSSES
from polaris_jax.sharding.mesh import AXES

# A stage may name these keys alone; every other key by its full path, such as "data.train". The temperature "search"
# sets `search.on`.
STAGE_KEYS = {
    "steps": "training.steps",
    "temperature": "rollout.temperature",
    "max_response_tokens": "rollout.max_response_tokens",
}

# What a stage may change: whole sections, and single keys of others. All else belongs to the run: it is read once, or
# decides what a checkpoint holds.
PER_STAGE = (
    "rollout", "search", "algorithm", "updates", "mesh", "evaluation",
    "model.remat",
    "data.train", "data.mix", "data.drop_above", "data.drop_by", "data.max_prompt_tokens",
    "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps",
    "optimizer.betas", "optimizer.weight_decay", "optimizer.clip_norm",
    "training.steps", "training.checkpoint_every", "training.checkpoint_minutes",
    "training.evaluate_every", "training.log_samples",
)  # fmt: skip

DTYPES = ("bfloat16", "float16", "float32")
LARGEST = 2**31 - 1  # no size, step, seed or rate that makes sense passes an int32

Constraint = tuple[str, Callable[[Any], bool]]  # what is expected, in words; whether a value of the right type is so


def _one_of(names: Iterable[str]) -> Constraint:
    return f"one of {', '.join(name or repr(name) for name in names)}", lambda value: value in names


def _tuple_of(words: str, kind: type, fits: Callable[[Any], bool]) -> Constraint:
    return words, lambda value: all(_same_type(part, kind()) for part in value) and fits(value)


_AT_LEAST_ONE: Constraint = ("at least 1", lambda value: value >= 1)
_POSITIVE: Constraint = ("more than 0", lambda value: value > 0)
_BELOW_ONE: Constraint = ("a share below 1", lambda value: 0 <= value < 1)
_TOP_P: Constraint = ("more than 0 and at most 1", lambda value: 0 < value <= 1)
_AXIS: Constraint = ("at least 1, or -1 for all devices that are left", lambda value: value == -1 or value >= 1)

# What a value must be beyond its type. Every number is from 0, or of these keys from this, to LARGEST besides.
LEAST = {**{f"mesh.{axis}": -1 for axis in AXES}, "reward.functions": -LARGEST}
CONSTRAINTS: dict[str, Constraint] = {
    "stages": ("dicts of overrides", lambda value: all(isinstance(stage, Mapping) for stage in value)),
    "model.dtype": _one_of(DTYPES),
    "model.remat": _one_of(REMAT_POLICIES),
    "model.lora_alpha": _POSITIVE,
    "model.lora_targets": _tuple_of(
        f"some of {', '.join(LORA_TARGETS)}, each once",
        str,
        lambda value: value and len({*value} & {*LORA_TARGETS}) == len(value),
    ),
    "model.lora_base": _one_of(("", *CODES)),
    "data.max_prompt_tokens": _AT_LEAST_ONE,
    "data.drop_by": _one_of(("mean", "last")),
    "data.mix": ("pairs (source, weight over 0), no source twice", lambda value: _is_mix(value)),
    **{f"rollout.{key}": _AT_LEAST_ONE for key in ("prompts", "samples", "max_response_tokens", "slots")},
    **{f"rollout.{key}": _AT_LEAST_ONE for key in ("tokens_per_call", "yarn_factor")},
    **{f"rollout.{key}": _POSITIVE for key in ("temperature", "yarn_attention_factor")},
    "rollout.top_p": _TOP_P,
    "rollout.page_size": ("a power of two", lambda value: value.bit_count() == 1),
    "rollout.cache_dtype": _one_of(("", *DTYPES)),
    "rollout.weights": _one_of(("", *CODES)),
    **{f"search.{key}": _AT_LEAST_ONE for key in ("problems", "samples")},
    "algorithm.loss": _one_of(LOSSES),
    "algorithm.advantage": _one_of(ADVANTAGES),
    "algorithm.aggregation": _one_of(("token", "sequence", "constant")),
    "algorithm.clip": _tuple_of("two numbers, below and above", float, lambda v: len(v) == 2 and min(v) >= 0),
    "algorithm.dual_clip": ("0 or more than 1", lambda value: value == 0 or value > 1),
    "algorithm.old_logprobs": _one_of(("trainer", "recorded")),
    "algorithm.rescue_gib": _POSITIVE,
    "algorithm.entropy_step": _POSITIVE,
    "algorithm.covariance_clip": _BELOW_ONE,
    "algorithm.covariance_bounds": _tuple_of("lower and upper", float, lambda v: len(v) == 2 and v[0] < v[1]),
    "algorithm.min_mixed": _BELOW_ONE,
    "updates.row_lengths": _tuple_of("one or more lengths of at least 1", int, lambda v: v and min(v) >= 1),
    **{f"updates.{key}": _AT_LEAST_ONE for key in ("minibatches", "epochs", "max_skipped")},
    "optimizer.name": _one_of(OPTIMIZERS),
    "optimizer.schedule": _one_of(SCHEDULES),
    "optimizer.schedule_span": _one_of(("run", "stage")),
    "optimizer.moments": _one_of(MOMENTS),
    "optimizer.betas": _tuple_of("two numbers below 1", float, lambda v: len(v) == 2 and 0 <= min(v) <= max(v) < 1),
    **{f"mesh.{axis}": _AXIS for axis in AXES},
    "reward.functions": ("pairs (function, weight)", lambda value: value and all(map(_is_weighted, value))),
    "reward.workers": _AT_LEAST_ONE,
    "reward.require_think": _one_of(("auto", "yes", "no")),
    "reward.timeout_s": _POSITIVE,
    "reward.memory_gib": ("at least 0.0625, for Python itself", lambda value: value * 2**30 >= MIN_MEMORY_BYTES),
    **{f"training.{key}": _AT_LEAST_ONE for key in ("steps", "checkpoint_every", "keep")},
    "training.loggers": _tuple_of(f"some of {', '.join(LOGGERS)}", str, lambda value: set(value) <= LOGGERS.keys()),
    "training.profile_steps": _tuple_of("first and last step, or none", int, lambda v: not v or _is_span(v)),
    **{f"sft.{key}": _AT_LEAST_ONE for key in ("steps", "batch_size", "checkpoint_every")},
    "sft.schedule": _one_of(SCHEDULES),
    "difficulty.samples": _AT_LEAST_ONE,
    "difficulty.keep": ("pairs (lowest, highest accuracy)", lambda value: value and all(map(_is_band, value))),
    "evaluation.benchmarks": _tuple_of("names", str, all),
    "evaluation.top_p": _TOP_P,
    **{f"evaluation.{key}": _AT_LEAST_ONE for key in ("samples", "max_response_tokens", "yarn_factor")},
}


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a file's `get_config()`, with overrides such as {"rollout.samples": 16} applied and checked."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such config file")
    return override(runpy.run_path(str(path))["get_config"](), overrides or {})


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A checked copy of `config` with dotted keys set. Raises UserError on an unknown key or a wrong type."""
    config = config.copy_and_resolve_references().unlock()
    known = dict(flatten(base.get_config()))
    for key, value in overrides.items():
        _check_value(key, value, known)
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    check(config)
    return config.lock()


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check(config: ConfigDict) -> None:
    """Raises UserError at the first unknown key, wrong type or impossible value."""
    known = dict(flatten(base.get_config()))
    found = dict(flatten(config))
    for key, value in found.items():
        _check_value(key, value, known)
    for key in known.keys() - found.keys():
        raise UserError(f"config.{key}: missing; start from configs/base.py")
    if found["rollout.samples"] < 2 and found["algorithm.loss"] != "sft":
        raise UserError("config.rollout.samples: expected at least 2, found 1; a group of one has no advantage")
    name, kept = found["optimizer.name"], found["optimizer.moments"]
    if kept != "float32" and name not in KEEPS_MOMENTS:
        raise UserError(f"config.optimizer.moments: expected float32, found {kept!r}; {name} keeps no others")
    if found["model.lora_rank"] and name == "muon":
        raise UserError("config.optimizer.name: muon is for whole kernels, which LoRA does not train; take adamw")
    if found["algorithm.importance_cap"] and found["algorithm.old_logprobs"] == "recorded":
        raise UserError(
            "config.algorithm.importance_cap: weights lead from the sampler to the trainer's old log-probs, but with "
            'old_logprobs="recorded" ratios are taken to the sampler\'s; leave one of the two as it is by default'
        )
    if found["algorithm.covariance_clip"] and found["algorithm.loss"] == "gspo":
        raise UserError(
            "config.algorithm.covariance_clip: detaches single tokens, but in gspo's loss each has the sequence's ratio"
        )
    for stage in config.stages:
        _stage_overrides(stage, known)


def stages(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """Name and config of each stage, in order; a config without stages is one stage called "train"."""
    known = dict(flatten(base.get_config()))
    if config.search.on or (config.stages and _stage_overrides(config.stages[0], known).get("search.on")):
        raise UserError("config.stages: the first stage needs a number as its temperature; later ones may search")
    if not config.stages:
        return [("train", config)]
    return [
        (stage.get("name", f"stage{i}"), override(config, {**_stage_overrides(stage, known), "stages": ()}))
        for i, stage in enumerate(map(dict, config.stages), 1)
    ]


def lora(config: ConfigDict) -> Lora | None:
    """The adapters that `config.model` asks for, without their base; None where it asks for none."""
    c = config.model
    return Lora(c.lora_rank, float(c.lora_alpha), tuple(c.lora_targets), c.lora_base) if c.lora_rank else None


def check_followed(stages: Iterable[ConfigDict]) -> None:
    """Raises UserError where a stage would sample from another distribution than the trainer's log-probs are of."""
    for stage in stages:
        for key, off in (("top_k", 0), ("top_p", 1)):
            if stage.rollout[key] != off:
                raise UserError(
                    f"config.rollout.{key}: training needs {off}, found {stage.rollout[key]}; the trainer's log-probs "
                    f"are over all tokens, so that every ratio would be wrong. config.evaluation.{key} may be otherwise"
                )


def _stage_overrides(stage: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    resolved = {STAGE_KEYS.get(key, key): value for key, value in stage.items() if key != "name"}
    if resolved.get("rollout.temperature") == "search":
        resolved = {key: value for key, value in resolved.items() if key != "rollout.temperature"} | {"search.on": True}
    for key, value in resolved.items():
        if key not in known:
            raise UserError(f"config.stages: no such key `{key}`{nearest(key, {**STAGE_KEYS, **known})}")
        if not within(key, PER_STAGE):
            raise UserError(
                f"config.stages: `{key}` is the whole run's, a stage cannot change it; it may change "
                f"{', '.join(PER_STAGE)}"
            )
        _check_value(key, value, known)
    return resolved


def _check_value(key: str, value: Any, known: Mapping[str, Any]) -> None:
    if key not in known:
        raise UserError(f"config.{key}: no such key{nearest(key, known)}")
    if redact(str(value)) != str(value):
        raise UserError(f"config.{key}: holds a secret; set HF_TOKEN or use `hf auth login` instead")
    if not _same_type(value, known[key]):
        expected = type(known[key]).__name__
        raise UserError(f"config.{key}: expected {expected}, found {type(value).__name__} {value!r}")
    least = LEAST.get(key, 0)
    words = "whole characters other than NUL" if isinstance(value, str) else f"numbers from {least} to {LARGEST}"
    sound = words, partial(_is_sound, least=least)
    for words, fits in (CONSTRAINTS.get(key, sound), sound):
        if not fits(value):
            raise UserError(f"config.{key}: expected {words}, found {value!r}")


def _is_sound(value: Any, least: int) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_sound(part, least) for part in value)
    if isinstance(value, str):
        return not re.search("[\0\ud800-\udfff]", value)  # no file can be called so
    return not isinstance(value, int | float) or least <= value <= LARGEST


def _is_band(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(_same_type(part, 0.0) for part in value) and 0 <= value[0] <= value[1]


def _is_span(value: tuple[int, ...] | list[int]) -> bool:
    return len(value) == 2 and 1 <= value[0] <= value[1]


def _is_weighted(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and bool(value[0]) and _same_type(value[1], 0.0)


def _is_mix(value: Any) -> bool:
    weighted = all(_is_weighted(part) and part[1] > 0 for part in value)
    return weighted and len({source for source, _ in value}) == len(value)


def within(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of `sections`, which may be keys themselves, or lies in one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def nearest(key: Any, known: Mapping[str, Any]) -> str:
    """A question for the key that was meant, or nothing where none is near."""
    names = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean `{names[0]}`?" if names else ""


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))
