"""`ModelConfig` from and to Hugging Face's `config.json`, and from and to our own `model.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from polaris_jax.errors import UserError
from polaris_jax.models.presets import ModelConfig, Yarn
from polaris_jax.models.transformer import REMAT_POLICIES

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MOST_LAYERS = 1000
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file. Raises UserError where it is missing, unreadable or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as json: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a json object, found {type(data).__name__}")
    return data


def config_from_hf(data: dict[str, Any], where: str | Path = "config.json") -> ModelConfig:
    """The shape that a parsed `config.json` describes, with transformers' defaults for absent keys.

    Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before). Raises UserError, naming
    `where` and the key, for whatever this model does not compute: other architectures, other rotary scalings than
    YaRN, sliding windows in use, quantised weights.
    """
    kind = data.get("model_type")
    if kind not in list(_ARCHITECTURES):  # it may be anything, even what cannot be hashed
        raise UserError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(_ARCHITECTURES)}")
    sizes = {key: _size(data, key, where) for key in _SIZES}
    heads, layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]
    kv_heads = _size({"num_key_value_heads": heads} | _present(data), "num_key_value_heads", where)
    default_head_dim = 128 if kind == "qwen3" else sizes["hidden_size"] // heads
    head_dim = _size({"head_dim": default_head_dim} | _present(data), "head_dim", where)
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    if layers > _MOST_LAYERS:
        raise UserError(f"{where}: num_hidden_layers {layers}; expected at most {_MOST_LAYERS}")
    if head_dim % 2:
        raise UserError(f"{where}: head_dim {head_dim} is odd; rotary embeddings need pairs")
    _refuse_unsupported(data, layers, where)
    epsilon = _number(data.get("rms_norm_eps", 1e-6), "rms_norm_eps", where)
    longest = _size({"max_position_embeddings": 32_768} | _present(data), "max_position_embeddings", where)
    theta, yarn = _rope(data, longest, where)
    return ModelConfig(
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rms_norm_eps=epsilon,
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        qk_norm=kind == "qwen3",
        attention_bias=kind == "qwen2",
        max_position_embeddings=longest,
        yarn=yarn,
    )


def _present(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _size(data: dict[str, Any], key: str, where: str | Path) -> int:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise UserError(f"{where}: {key} must be a positive integer, found {value!r}")
    return value


def _number(value: Any, name: str, where: str | Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**31:
        raise UserError(f"{where}: {name} must be a positive number, found {value!r}")
    return float(value)


def _refuse_unsupported(data: dict[str, Any], layers: int, where: str | Path) -> None:
    kind = data["model_type"]
    if data.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {data['hidden_act']!r} is not supported; supported: silu")
    if kind == "qwen3" and data.get("attention_bias"):
        raise UserError(f"{where}: attention_bias of a qwen3 model is not supported")
    if data.get("quantization_config"):
        raise UserError(f"{where}: quantization_config: quantised weights are not supported")
    types = data.get("layer_types")
    if types is None:
        windowed = data.get("use_sliding_window") and data.get("sliding_window", 4096) is not None
        full = data.get("max_window_layers", 28)
        sliding = windowed and not (isinstance(full, int) and full >= layers)
    else:
        sliding = types != ["full_attention"] * len(types) if isinstance(types, list) else True
    if sliding:
        raise UserError(f"{where}: sliding window attention is in use and is not supported; every layer must be full")


def _rope(data: dict[str, Any], longest: int, where: str | Path) -> tuple[float, Yarn | None]:
    """The base of the rotary angles, and YaRN where it is asked for."""
    key = "rope_parameters" if data.get("rope_parameters") else "rope_scaling"
    rope = data.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: {key} must be an object, found {rope!r}")
    theta = _number(rope.get("rope_theta") or data.get("rope_theta") or 10_000.0, "rope_theta", where)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise UserError(f"{where}: {key}: rope type {kind!r} is not supported; supported: default, yarn")
    partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UserError(f"{where}: {key}: partial_rotary_factor {partial} is not supported; supported: 1")
    if kind == "default":
        return theta, None
    known = {field.name for field in dataclasses.fields(Yarn)}
    ignored = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    values = _present({name: value for name, value in rope.items() if name not in ignored})
    if values.get("truncate") is True:  # transformers' default
        del values["truncate"]
    values = {"original_max_position_embeddings": longest} | values
    if unknown := sorted(set(values) - known):
        raise UserError(f"{where}: {key}: yarn with {', '.join(unknown)} is not supported; supported: {sorted(known)}")
    if "factor" not in values:
        raise UserError(f"{where}: {key}: yarn needs a factor")
    for name, value in values.items():
        _number(value, f"{key}: {name}", where)
    return theta, Yarn(**values)


def config_to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What `config.json` says of the model, `dtype` being the dtype of the saved tensors.

    Rotary settings are written as `rope_theta` and `rope_scaling`, which old and new transformers, vLLM and SGLang
    all read. Raises UserError for a shape that is neither Qwen2's nor Qwen3's.
    """
    if config.qk_norm == config.attention_bias:
        raise UserError("only qk_norm without attention_bias (qwen3) or the reverse (qwen2) can be exported")
    kind = "qwen3" if config.qk_norm else "qwen2"
    data = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    if kind == "qwen2":
        del data["attention_bias"]  # not a setting there: q, k and v always have one
        if config.head_dim * config.num_attention_heads == config.hidden_size:
            del data["head_dim"]
    if config.yarn is not None:
        rope = {"rope_type": "yarn"} | dataclasses.asdict(config.yarn)
        data["rope_scaling"] = {key: value for key, value in rope.items() if value is not None}
    return data


def config_to_json(config: ModelConfig) -> str:
    """The text of `model.json`: every field of the config."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str, where: str | Path = "model.json") -> ModelConfig:
    """The config that `config_to_json` wrote. Raises UserError, naming `where`, for text that is none."""
    try:
        data = json.loads(text)
        data["yarn"] = None if data["yarn"] is None else Yarn(**data["yarn"])
        config = ModelConfig(**data)
        described = config_to_hf(config, config.dtype)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a model written by polaris_jax: {error}") from error
    known = config.dtype in ("bfloat16", "float16", "float32") and config.remat in list(REMAT_POLICIES)
    if not known or config_from_hf(described, where).replace(dtype=config.dtype, remat=config.remat) != config:
        raise UserError(f"{where}: not a model written by polaris_jax: {text}")
    return config
