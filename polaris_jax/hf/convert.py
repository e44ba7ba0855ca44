"""The two conversions as one call each: a Hugging Face model into a directory of ours, and back."""

from __future__ import annotations

from pathlib import Path

from polaris_jax.errors import UserError
from polaris_jax.files import check_target, new_directory
from polaris_jax.hf import native
from polaris_jax.hf.config import config_from_hf, read_json
from polaris_jax.hf.export import save, with_yarn, write_tokenizer
from polaris_jax.hf.hub import MODEL_FILES, TOKENIZER_FILES, resolve
from polaris_jax.hf.import_ import load
from polaris_jax.hf.tokenizer import load_tokenizer
from polaris_jax.models.presets import ModelConfig, Yarn


def import_model(source: str | Path, target: str | Path) -> ModelConfig:
    """Writes the Hugging Face model `source` (directory or hub name) as a directory of ours; returns its config.

    Raises UserError as `hf.load` and `hf.load_tokenizer` do, or where `target` holds something already; then nothing
    is left behind.
    """
    directory = resolve(source, (*MODEL_FILES, *TOKENIZER_FILES))
    if native.is_native(directory):
        raise UserError(f"{source}: already a directory of ours; `config.model.path` takes it as it is")
    path = directory / "config.json"
    load_tokenizer(directory, vocab_size=config_from_hf(read_json(path), path).vocab_size)
    with new_directory(target) as staging:
        config, params = load(directory)
        native.save_params(params, config, staging)
        (staging / "tokenizer").mkdir()
        write_tokenizer(directory, staging / "tokenizer")
    return config


def export_model(
    source: str | Path,
    target: str | Path,
    *,
    step: int | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 4 * 2**30,
    yarn_factor: float = 0.0,
    yarn_attention_factor: float = 1.0,
    yarn_original: int = 0,
) -> Path:
    """Writes a training run's directory, or one made by `import_model`, as a Hugging Face directory `target`.

    step: which checkpoint of a run, default the newest. yarn_factor: 0 for none, else a context extension of
    `yarn_original` positions (0: the model's max_position_embeddings). Raises UserError as `hf.save` does, and where
    the source is not such a directory.
    """
    directory = Path(source).expanduser()
    if not native.is_native(directory):
        raise UserError(f"{source}: no model.json: neither a training run nor a directory made by import_hf.py")
    check_target(target)
    config, params = load(directory, step=step)
    tokenizer = directory / "tokenizer"
    load_tokenizer(tokenizer, vocab_size=config.vocab_size)
    if yarn_factor:
        trained = config.yarn.original_max_position_embeddings if config.yarn else config.max_position_embeddings
        config = with_yarn(config, Yarn(yarn_factor, yarn_original or trained, yarn_attention_factor))
    return save(params, config, target, tokenizer=tokenizer, dtype=dtype, max_shard_bytes=max_shard_bytes)
