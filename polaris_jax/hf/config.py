"""`ModelConfig` from and to Hugging Face's `config.json`, and from and to our own `model.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from polaris_jax.errors import UserError
from polaris_jax.models.presets import LORA_TARGETS, Lora, ModelConfig, Yarn
from polaris_jax.models.quantise import CODES
from polaris_jax.models.rope import yarn_attention_factor
from polaris_jax.models.transformer import REMAT_POLICIES

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MOST_LAYERS = 1000
_YARN = tuple(field.name for field in dataclasses.fields(Yarn))
_ATTENTION = ("attn_factor", "mscale", "mscale_all_dim")  # other settings of Yarn.attention_factor
_NEUTRAL = {"truncate": True, "extrapolation_factor": 1}  # what YaRN does anyway
_ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")  # settings of every rotary type
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file. Raises UserError where it is missing, unreadable or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
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


def _number(value: Any, name: str, where: str | Path, *, zero: bool = False) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 2**31 or (value == 0 and not zero):
        raise UserError(f"{where}: {name} must be a {'' if zero else 'positive '}number, found {value!r}")
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
    # As in transformers: rope_scaling, which users add to files that hold rope_parameters already, comes first.
    key = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    rope, others = _rope_settings(data, key, where), _rope_settings(data, "rope_parameters", where)
    thetas = (rope.get("rope_theta"), data.get("rope_theta"), others.get("rope_theta"), 10_000.0)
    theta = _number(next(theta for theta in thetas if theta), "rope_theta", where)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise UserError(f"{where}: {key}: rope type {kind!r} is not supported; supported: default, yarn")
    partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UserError(f"{where}: {key}: partial_rotary_factor {partial} is not supported; supported: 1")
    if kind == "default":
        return theta, None
    if "factor" not in rope:
        raise UserError(f"{where}: {key}: yarn needs a factor")
    original = data.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or longest
    return theta, _yarn(rope | {"original_max_position_embeddings": original}, longest, f"{where}: {key}")


def _yarn(rope: dict[str, Any], longest: int, where: str) -> Yarn:
    """YaRN's settings, of whose many names for the factor on cos and sin one is left."""
    values = {name: value for name, value in _present(rope).items() if name not in _ROPE}
    values = {name: value for name, value in values.items() if name not in _NEUTRAL or value != _NEUTRAL[name]}
    if unknown := sorted(set(values) - set(_YARN) - set(_ATTENTION)):
        supported = sorted(_YARN + _ATTENTION)
        raise UserError(f"{where}: yarn with {', '.join(unknown)} is not supported; supported: {supported}")
    for name, value in values.items():
        _number(value, name, where, zero=name.startswith("mscale"))
    values.setdefault("factor", longest / values["original_max_position_embeddings"])  # null there, as in transformers
    attention = {name: values.pop(name) for name in _ATTENTION if name in values}
    if attention and "attention_factor" not in values:
        values["attention_factor"] = _attention_factor(values["factor"], **attention)
    return Yarn(**values)


def _rope_settings(data: dict[str, Any], key: str, where: str | Path) -> dict[str, Any]:
    rope = data.get(key) or {}
    if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):  # one for each type of layer
        rope = rope["full_attention"]
    if not isinstance(rope, dict):
        raise UserError(f"{where}: {key} must be an object, found {rope!r}")
    return rope


def _attention_factor(factor: float, mscale: float = 0, mscale_all_dim: float = 0, attn_factor: float = 1) -> float:
    """The factor on cos and sin that these settings come to.

    As transformers computes mscale and mscale_all_dim, which count together only; attn_factor, which it does not know,
    multiplies the factor, as in vLLM.
    """
    if not (mscale and mscale_all_dim):
        return yarn_attention_factor(factor) * attn_factor
    return yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim) * attn_factor


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
        data["lora"] = _lora(data.get("lora"))
        config = ModelConfig(**data)
        described = config_to_hf(config, config.dtype)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a model written by polaris_jax: {error}") from error
    ours = {name: getattr(config, name) for name in ("dtype", "remat", "known_tokens", "lora")}
    sound = config.dtype in ("bfloat16", "float16", "float32") and config.remat in list(REMAT_POLICIES)
    same = config_from_hf(described, where).replace(**ours) == config  # says which size is none
    if not (sound and same and config.known_tokens in range(config.vocab_size)):
        raise UserError(f"{where}: not a model written by polaris_jax: {text}")
    return config


def _lora(data: dict[str, Any] | None) -> Lora | None:
    """Raises TypeError or KeyError where it is none."""
    if data is None:
        return None
    lora = Lora(**data | {"targets": tuple(data["targets"])})
    for name, kind in Lora.__annotations__.items():
        if not isinstance(getattr(lora, name), {"int": int, "float": int | float, "str": str}.get(kind, tuple)):
            raise TypeError(f"lora.{name}: found {getattr(lora, name)!r}")
    if lora.rank < 1 or not set(lora.targets) <= set(LORA_TARGETS) or lora.weights not in ("", *CODES):
        raise TypeError(f"lora: found {data}")
    return lora
