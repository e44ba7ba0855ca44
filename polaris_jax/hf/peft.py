"""The adapters of a run with LoRA as a directory that `peft`, vLLM and SGLang load beside the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from safetensors.numpy import save_file

from polaris_jax.errors import UserError
from polaris_jax.files import check_target, new_directory, write_json
from polaris_jax.hf import native
from polaris_jax.hf.export import write_tokenizer
from polaris_jax.hf.names import leaves
from polaris_jax.models.lora import ADAPTERS
from polaris_jax.models.presets import Lora, ModelConfig
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import barrier, is_writer


def export_adapters(source: str | Path, target: str | Path, *, step: int | None = None) -> Path:
    """Writes the adapters of the training run in `source`, float32, and its tokenizer; returns the new directory.

    step: which checkpoint, default the newest. The base model is not read: adapter_config.json names what the run was
    given. Raises UserError where the run has no adapters or the target holds something already.
    """
    directory = Path(source).expanduser()
    if not native.is_native(directory):
        raise UserError(f"{source}: no model.json: not a training run")
    check_target(target)
    config, adapters = native.load_params(directory, make_mesh(devices=jax.local_devices()[:1]), step=step)
    if config.lora is None:
        raise UserError(f"{source}: no adapters: all of the model was trained; export it without --adapters")
    save_adapters(adapters, config, target, tokenizer=directory / "tokenizer")
    return Path(target)


def save_adapters(adapters: Any, config: ModelConfig, target: str | Path, *, tokenizer: Path | None = None) -> None:
    """Writes adapter_model.safetensors and adapter_config.json, as `peft` does. adapters: of `models.lora.split`."""
    tensors = adapter_tensors(adapters, config)
    if is_writer():
        with new_directory(target) as staging:
            save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
            write_json(staging / "adapter_config.json", _described(config.lora))
            write_tokenizer(tokenizer, staging)
    barrier(f"exported {target}")


def adapter_tensors(adapters: Any, config: ModelConfig) -> dict[str, np.ndarray]:
    """The adapters under `peft`'s names and transposed as there: A is [rank, in], B [out, rank]."""
    names = {leaf.path: leaf.names for leaf in leaves(config)}
    tensors = {}
    for keys, stacked in jax.tree_util.tree_flatten_with_path(adapters)[0]:
        *path, name = (key.key for key in keys)
        whole = stacked if stacked.is_fully_addressable else process_allgather(stacked, tiled=True)
        for tensor, matrix in zip(names["/".join([*path, "kernel"])], np.asarray(whole), strict=True):
            which = "AB"[ADAPTERS.index(name)]
            tensor = f"base_model.model.{tensor.removesuffix('weight')}lora_{which}.weight"
            tensors[tensor] = np.ascontiguousarray(matrix.T)
    return tensors


def _described(lora: Lora) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
