"""Configs: load, override, check, and resolve stages. The keys and their defaults are in `configs/base.py`."""

from __future__ import annotations

import difflib
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from polaris_jax.errors import UserError

# A stage may name these keys alone; every other key by its full path, such as "data.train". The temperature "search"
# sets `search.on`.
STAGE_KEYS = {
    "steps": "training.steps",
    "temperature": "rollout.temperature",
    "max_response_tokens": "rollout.max_response_tokens",
}

AT_LEAST_ONE = (
    "rollout.prompts",
    "rollout.samples",
    "rollout.slots",
    "rollout.max_response_tokens",
    "updates.rows",
    "algorithm.rescue_buffer",
    "search.problems",
    "search.samples",
    "difficulty.samples",
)


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
    for key in AT_LEAST_ONE:
        if found[key] < 1:
            raise UserError(f"config.{key}: expected at least 1, found {found[key]}")
    if found["rollout.samples"] < 2 and found["algorithm.loss"] != "sft":
        raise UserError("config.rollout.samples: expected at least 2, found 1; a group of one has no advantage")
    for key in ("rollout.temperature", "evaluation.temperature"):
        if found[key] < 0:
            raise UserError(f"config.{key}: expected at least 0, found {found[key]}")
    if not 0 <= found["algorithm.min_mixed"] < 1:
        raise UserError(f"config.algorithm.min_mixed: expected a share below 1, found {found['algorithm.min_mixed']}")
    for band in found["difficulty.keep"]:
        if not isinstance(band, tuple | list) or len(band) != 2 or not band[0] <= band[1]:
            raise UserError(f"config.difficulty.keep: expected pairs (lowest, highest accuracy), found {band!r}")
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


def _stage_overrides(stage: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    resolved = {STAGE_KEYS.get(key, key): value for key, value in stage.items() if key != "name"}
    if resolved.get("rollout.temperature") == "search":
        resolved = {key: value for key, value in resolved.items() if key != "rollout.temperature"} | {"search.on": True}
    for key in resolved:
        if key not in known:
            raise UserError(f"config.stages: no such key `{key}`{nearest(key, {**STAGE_KEYS, **known})}")
    return resolved


def _check_value(key: str, value: Any, known: Mapping[str, Any]) -> None:
    if key not in known:
        raise UserError(f"config.{key}: no such key{nearest(key, known)}")
    if not _same_type(value, known[key]):
        expected = type(known[key]).__name__
        raise UserError(f"config.{key}: expected {expected}, found {type(value).__name__} {value!r}")


def nearest(key: str, known: Mapping[str, Any]) -> str:
    """A question for the key that was meant, or nothing where none is near."""
    names = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean `{names[0]}`?" if names else ""


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))
