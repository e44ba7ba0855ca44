"""Our parameters as a Hugging Face directory: safetensors with index, config, tokenizer, generation config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from transformers import PreTrainedTokenizerBase

from polaris_jax.errors import UserError
from polaris_jax.files import new_directory, write_json
from polaris_jax.hf.config import config_to_hf, read_json
from polaris_jax.hf.hub import TOKENIZER_FILES
from polaris_jax.hf.names import Leaf, leaves
from polaris_jax.hf.tokenizer import eos_ids, load_tokenizer, read_generation_config, stop_ids
from polaris_jax.models.presets import ModelConfig, Yarn
from polaris_jax.sharding.multihost import barrier, is_writer

_SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def save(
    params: Any,
    config: ModelConfig,
    target_dir: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 4 * 2**30,
    generation_config: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the model as a directory that `transformers` loads; returns its path.

    params: the parameter tree, on one device or many; several processes call it together, and one writes. tokenizer:
    an object, or a directory whose files are copied. dtype: of the saved tensors: bfloat16, float16 or float32.
    max_shard_bytes: files are cut before they pass this, though never within a tensor. generation_config: keys of
    generation_config.json, over those that come with the tokenizer.

    Tensors are cast, fetched and written one by one. The directory appears whole, under its name, or not at all.
    Raises UserError where the target holds something already (unless `overwrite`), for parameters that are not those
    of `config`, and for an unknown dtype.
    """
    if dtype not in _SAFETENSORS_DTYPES:
        raise UserError(f"dtype must be one of {', '.join(_SAFETENSORS_DTYPES)}, found {dtype!r}")
    parameters = list(leaves(config))
    arrays = _matched(params, parameters)
    described = config_to_hf(config, dtype)
    if is_writer():
        with new_directory(target_dir, overwrite=overwrite) as staging:
            _write_weights(parameters, arrays, staging, dtype, max_shard_bytes)
            generation = write_tokenizer(tokenizer, staging, generation_config)
            described |= {key: generation[key] for key in ("bos_token_id", "eos_token_id") if key in generation}
            write_json(staging / "config.json", described)
    else:  # the others give their parts of the tensors that no process has whole
        for leaf, array in zip(parameters, arrays, strict=True):
            for _ in _host_tensors([(name, leaf, array, i) for i, name in enumerate(leaf.names)], dtype):
                pass
    barrier(f"exported {target_dir}")
    return Path(target_dir)


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    directory: Path,
    generation_config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Puts a tokenizer's files and generation_config.json into `directory`; returns what the latter says.

    A directory's files are copied. An object is written so that transformers before 5, and with it vLLM, knows its
    class, which is the one that it was loaded with.
    The generation config is that of the tokenizer's directory, if any, with every token that ends a response here
    (`hf.stop_ids`) and the padding token, and with `generation_config` over it. Without tokenizer and
    `generation_config`, no file is written.
    """
    generation: dict[str, Any] = {}
    if isinstance(tokenizer, str | Path):
        source = Path(tokenizer)
        tokenizer = load_tokenizer(source)
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and source.resolve() != directory.resolve():
                shutil.copyfile(source / name, directory / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(directory)
        _name_as_before(tokenizer, directory / "tokenizer_config.json")
    if tokenizer is not None:
        generation, stops = read_generation_config(tokenizer), stop_ids(tokenizer)
        if set(stops) - {*eos_ids(generation)}:
            generation["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
        if tokenizer.pad_token_id is not None:
            generation.setdefault("pad_token_id", tokenizer.pad_token_id)
    generation |= generation_config or {}
    if generation:
        write_json(directory / "generation_config.json", generation)
    return generation


def _name_as_before(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Takes what only transformers 5 reads out of a tokenizer_config.json that it wrote."""
    settings, loaded = read_json(path), Path(tokenizer.name_or_path) / "tokenizer_config.json"
    given = read_json(loaded).get("tokenizer_class") if tokenizer.name_or_path and loaded.is_file() else None
    name = given or settings.get("tokenizer_class")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast" if name in (None, "TokenizersBackend") else name
    if isinstance(settings.get("extra_special_tokens"), list):  # a dict before, where this stops the loading
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(path, settings)


def _matched(params: Any, parameters: list[Leaf]) -> list[jax.Array]:
    """The arrays in the order of `parameters`. Raises UserError where a path or a shape differs."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    found = {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}
    shapes = {path: tuple(leaf.shape) for path, leaf in found.items()}
    expected = {leaf.path: leaf.shape for leaf in parameters}
    if shapes != expected:
        paths = sorted(path for path in shapes | expected if shapes.get(path) != expected.get(path))
        path = paths[0]
        raise UserError(
            f"parameter {path}: found shape {shapes.get(path)}, the config expects {expected.get(path)}; "
            f"{len(paths)} parameters differ"
        )
    return [found[leaf.path] for leaf in parameters]


def with_yarn(config: ModelConfig, yarn: Yarn) -> ModelConfig:
    """The model with a context extension for inference, as `save` writes it into config.json. Raises UserError."""
    longest = yarn.factor * yarn.original_max_position_embeddings
    if yarn.factor < 1 or longest != int(longest):
        raise UserError(
            f"yarn: factor {yarn.factor} x original_max_position_embeddings {yarn.original_max_position_embeddings} "
            "must be a whole number, and the factor at least 1"
        )
    return config.replace(yarn=yarn, max_position_embeddings=int(longest))


def _write_weights(
    parameters: list[Leaf], arrays: list[jax.Array], directory: Path, dtype: str, max_shard_bytes: int
) -> None:
    """The tensors in files of at most `max_shard_bytes`, and the index where there is more than one file."""
    itemsize = jnp.dtype(dtype).itemsize
    shards: list[list[tuple[str, Leaf, jax.Array, int]]] = [[]]
    size = total = 0
    for leaf, array in zip(parameters, arrays, strict=True):
        for layer, name in enumerate(leaf.names):
            nbytes = int(np.prod(leaf.tensor_shape)) * itemsize
            if shards[-1] and size + nbytes > max_shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append((name, leaf, array, layer))
            size, total = size + nbytes, total + nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        _write_safetensors(directory / file, shard, dtype)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name, *_ in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / "model.safetensors.index.json", index)


def _write_safetensors(path: Path, shard: list[tuple[str, Leaf, jax.Array, int]], dtype: str) -> None:
    """One file, written as its tensors arrive: the library's own writer would need them all at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, leaf, _, _ in shard:
        end = offset + int(np.prod(leaf.tensor_shape)) * jnp.dtype(dtype).itemsize
        shape = list(leaf.tensor_shape)
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in _host_tensors(shard, dtype):
            file.write(tensor.tobytes())


def _host_tensors(shard: list[tuple[str, Leaf, jax.Array, int]], dtype: str) -> Iterator[np.ndarray]:
    for _, leaf, array, layer in shard:
        tensor = _cast_layer(array, np.int32(layer), dtype) if leaf.stacked else array.astype(dtype)
        tensor = np.asarray(tensor) if tensor.is_fully_addressable else process_allgather(tensor, tiled=True)
        yield np.ascontiguousarray(tensor.T if leaf.transposed else tensor)


@partial(jax.jit, static_argnames="dtype")
def _cast_layer(array: jax.Array, layer: jax.Array, dtype: str) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, layer, keepdims=False).astype(dtype)
