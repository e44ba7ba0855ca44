"""Hugging Face checkpoints into our parameter tree, tensor by tensor, placed where they will be used."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from polaris_jax.errors import UserError
from polaris_jax.hf import native
from polaris_jax.hf.config import config_from_hf, read_json
from polaris_jax.hf.hub import MODEL_FILES, resolve
from polaris_jax.hf.names import Leaf, leaves
from polaris_jax.models.lora import checksum, join, merge
from polaris_jax.models.presets import ModelConfig
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import param_shardings

_FLOATS = ("F64", "F32", "F16", "BF16")
# What older transformers and other trainers save beside the weights: computed from the config, or the trainer's state.
_BUFFER = re.compile(
    r"(^|\.)rotary_emb\.\w+$|\.(inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|masked_bias|_extra_state)$"
)
_MOST_LISTED = 5  # problems in one message


def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str = "bfloat16",
    step: int | None = None,
    param_dtype: str = "float32",
) -> tuple[ModelConfig, Any]:
    """The model's config and its parameters laid over `mesh` (default: the process's first device alone).

    source: a Hugging Face directory or hub name, a directory written by experiments/import_hf.py, or a training run's
    directory; of a run with LoRA adapters and base come merged. dtype: the compute dtype written into the config of a
    Hugging Face model; ours bring their own. step: which checkpoint of a training run, default the newest. param_dtype:
    of the parameters.

    The host holds one parameter at a time beyond what the devices hold. Raises UserError, naming file and tensor,
    when anything is missing, left over, of another shape, or not a supported model. Buffers, such as
    `rotary_emb.inv_freq`, are ignored, which the log says once.
    """
    directory = resolve(source, MODEL_FILES)
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    if native.is_native(directory):
        config, params = native.load_params(directory, mesh, step=step, param_dtype=param_dtype)
        if config.lora is None:
            return config, params
        merged = merge(join(params, load_base(directory, config, mesh)), config.lora)
        return config.replace(lora=None), jax.tree.map(lambda x: x.astype(param_dtype), merged)
    if step is not None:
        raise UserError(f"{directory}: step {step} asked for, but this is not a training run's directory")
    path = directory / "config.json"
    config = config_from_hf(read_json(path), path).replace(dtype=dtype)
    shardings = param_shardings(config, mesh)
    with ExitStack() as stack:
        tensors = _open_tensors(directory, stack)
        parameters = list(leaves(config))
        _check(directory, tensors, parameters, config)
        arrays = [
            _place(leaf, tensors, sharding, jnp.dtype(param_dtype))
            for leaf, sharding in zip(parameters, jax.tree.leaves(shardings), strict=True)
        ]
    return config, jax.tree.unflatten(jax.tree.structure(shardings), arrays)


def load_base(directory: Path, config: ModelConfig, mesh: Mesh) -> Any:
    """The parameters, in the compute dtype, that the adapters of the run in `directory` belong to.

    config: what its model.json says. Raises UserError where they cannot be had any more, or are others by now.
    """
    where = f"{directory}: its adapters belong to the base model {config.lora.base}"
    try:
        base = load(config.lora.base, mesh=mesh, param_dtype=config.dtype)[1]
    except UserError as error:
        raise UserError(f"{where}; put it back, or name its new place in model.json: {error}") from error
    if checksum(base) != config.lora.checksum:
        raise UserError(f"{where}, which has other weights now than when the run began; put those back")
    return base


class _Tensor:
    """A tensor in an open safetensors file; indexing reads only what is asked for."""

    def __init__(self, file: Path, handle: Any, name: str):
        self.file, self.slice = file, handle.get_slice(name)
        self.shape, self.dtype = tuple(self.slice.get_shape()), self.slice.get_dtype()

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.slice[index]


def _open_tensors(directory: Path, stack: ExitStack) -> dict[str, _Tensor]:
    """Every tensor of the checkpoint by name; the files stay open as long as `stack`."""
    tensors = {}
    for file in _files(directory):
        try:
            handle = stack.enter_context(safe_open(file, framework="np"))
            tensors |= {name: _Tensor(file, handle, name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError as error:
            raise UserError(f"{file}: no such file, though the checkpoint's index names it") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a whole safetensors file: {error}") from error
    return tensors


def _files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{index}: no weight_map")
        return [directory / Path(str(name)).name for name in sorted(set(names.values()))]
    file = directory / "model.safetensors"
    if file.is_file():
        return [file]
    if any(directory.glob("*.bin")):
        raise UserError(
            f"{directory}: only pickled weights (*.bin), which are never read; convert them to safetensors with "
            "transformers' save_pretrained"
        )
    raise UserError(f"{directory}: no model.safetensors and no model.safetensors.index.json")


def _check(directory: Path, tensors: dict[str, _Tensor], parameters: list[Leaf], config: ModelConfig) -> None:
    """Raises one UserError for all tensors that are missing, left over, or not as `config` says."""
    expected = {name: leaf.tensor_shape for leaf in parameters for name in leaf.names}
    if config.tie_word_embeddings and "lm_head.weight" in tensors:  # a copy that some tied checkpoints carry
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"tensor {name} is missing, expected shape {list(shape)}")
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            problems.append(f"{tensors[name].file.name}: tensor {name} has shape {found}, expected {list(shape)}")
        elif tensors[name].dtype not in _FLOATS:
            problems.append(f"{tensors[name].file.name}: tensor {name} is {tensors[name].dtype}, expected floats")
    extra = sorted(set(tensors) - set(expected))
    buffers = [name for name in extra if _BUFFER.search(name)]
    if buffers:
        logging.warning("%s: %d buffers ignored, such as %s", directory, len(buffers), buffers[0])
    extra = [name for name in extra if not _BUFFER.search(name)]
    problems += [f"{tensors[name].file.name}: tensor {name} is not part of this model" for name in extra]
    if problems:
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise UserError(f"{directory}: does not fit its config.json: {'; '.join(problems[:_MOST_LISTED])}{more}")
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        _check_tied(directory, tensors)


def _check_tied(directory: Path, tensors: dict[str, _Tensor], rows: int = 4096) -> None:
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    for start in range(0, embedding.shape[0], rows):
        block = (slice(start, min(start + rows, embedding.shape[0])), slice(None))
        if not np.array_equal(embedding[block], head[block]):
            raise UserError(
                f"{directory}: config.json ties lm_head.weight to model.embed_tokens.weight, but the two differ"
            )


def _place(leaf: Leaf, tensors: dict[str, _Tensor], sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    """The parameter as one array; each device's part is read from the files by itself."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        names = leaf.names[index[0]] if leaf.stacked else leaf.names
        block = index[1:] if leaf.stacked else index
        block = block[::-1] if leaf.transposed else block
        part = [range(size)[where] for size, where in zip(leaf.shape, index, strict=True)]
        out = np.empty([len(axis) for axis in part], dtype)
        rows = out if leaf.stacked else out[None]
        for row, name in zip(rows, names, strict=True):
            values = tensors[name][block]
            row[...] = values.T if leaf.transposed else values
        return out

    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:
        mesh = ", ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items() if size > 1)
        raise UserError(f"parameter {leaf.path} of shape {list(leaf.shape)} cannot be split over {mesh}") from error
    return jax.make_array_from_callback(leaf.shape, sharding, read)
