"""Where a model lies: a directory as it is, a hub name after its files were fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from polaris_jax.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


def resolve(source: str | Path, files: Sequence[str]) -> Path:
    """The directory that `source` names: an existing one, or the files (glob patterns) of a hub model `owner/name`.

    Only text and safetensors are ever fetched. Raises UserError where neither is to be had, saying what else to give.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):  # unlike Path.is_dir, False for what no file can be called
        return path
    if os.path.exists(path):
        raise UserError(f"{source}: expected a directory, found a file")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UserError(f"{source}: no such directory")
    beside = sorted(child.name for child in path.parent.iterdir()) if path.parent.is_dir() else []
    here = "no such directory here" + (f" (in {path.parent}/ are {', '.join(beside[:20])})" if beside else "")
    instead = f"or give a local directory with {', '.join(files[:2])}, ... instead"
    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=list(files)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{source}: {here}, and no such model on the Hugging Face hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: {here}, and the Hugging Face hub is not reachable ({reason}); "
            f"check the name and the connection, {instead}"
        ) from error
