"""Our own directories: what `import_hf.py` writes, and the parameters in a training run's directory.

DIR/model.json                    the model's shape (hf.config_to_json)
DIR/tokenizer/                    a Hugging Face tokenizer, with generation_config.json where there was one
DIR/params/                       the parameters (orbax), or, in a run's directory,
DIR/checkpoints/STEP/state/       the training state, of which `params` is read; of a run with LoRA, its adapters
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from polaris_jax.errors import UserError
from polaris_jax.files import CHECKSUMS, damage
from polaris_jax.hf.config import config_from_json, config_to_json, read_json
from polaris_jax.models.lora import split
from polaris_jax.models.presets import ModelConfig
from polaris_jax.sharding.rules import param_shapes, param_shardings


def is_native(directory: Path) -> bool:
    """Whether this is a directory of ours."""
    return (directory / "model.json").is_file()


def save_params(params: Any, config: ModelConfig, directory: Path) -> None:
    """Writes model.json and params/ into an existing directory."""
    (directory / "model.json").write_text(config_to_json(config), encoding="utf-8")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute() / "params", params)


def load_params(
    directory: Path, mesh: Mesh, *, step: int | None = None, param_dtype: str = "float32"
) -> tuple[ModelConfig, Any]:
    """The config, and the parameters laid over `mesh`, or, of a run with LoRA, its adapters.

    step: which checkpoint of a run, default the newest. param_dtype: of the parameters; adapters are float32. Raises
    UserError where there is no such checkpoint or it does not fit model.json.
    """
    path = directory / "model.json"
    config = config_from_json(json.dumps(read_json(path)), path)
    dtype = jnp.dtype("float32" if config.lora else param_dtype)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        split(param_shapes(config))[0],
        split(param_shardings(config, mesh))[0],
    )
    if step is None and (directory / "params").is_dir():
        return config, _restore(directory / "params", abstract)
    return config, _restore(_state_directory(directory, step), {"params": abstract})["params"]


def _state_directory(directory: Path, step: int | None) -> Path:
    checkpoints = directory / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    steps = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    if not steps:
        raise UserError(f"{directory}: no parameters here: neither params/ nor checkpoints/STEP/")
    if step is not None and step not in steps:
        raise UserError(f"{checkpoints}: no step {step}; there are {', '.join(map(str, steps))}")
    path = checkpoints / str(steps[-1] if step is None else step)
    if (path / CHECKSUMS).exists() and (problem := next(iter(damage(path).values()), None)):
        raise UserError(f"{path}: {problem}; there are the steps {', '.join(map(str, steps))}")
    return path / "state"


def _restore(path: Path, abstract: Any) -> Any:
    """The part of the saved tree that `abstract` describes. Raises UserError where it is not there, or not so."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        found = {names: leaf.shape for names, leaf in _flat(handler.metadata(epath.Path(path.absolute())).tree)}
        missing = [(names, leaf.shape) for names, leaf in _flat(abstract) if found.get(names) != leaf.shape]
        if missing:
            names, shape = missing[0]
            raise UserError(
                f"{path}: does not fit model.json: parameter {'/'.join(names)} has shape {found.get(names)}, "
                f"expected {shape}; {len(missing)} differ"
            )
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path.absolute(), args=args)
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise UserError(f"{path}: not a whole checkpoint: {error}") from error


def _flat(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield tuple(jax.tree_util.keystr((key,), simple=True) for key in keys), leaf
