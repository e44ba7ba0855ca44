"""Hugging Face checkpoints and tokenizers, in and out."""

from polaris_jax.hf.config import config_from_hf, config_from_json, config_to_hf, config_to_json
from polaris_jax.hf.convert import export_model, import_model
from polaris_jax.hf.export import save, with_yarn
from polaris_jax.hf.import_ import load, load_base
from polaris_jax.hf.peft import export_adapters, save_adapters
from polaris_jax.hf.tokenizer import check_tokenizer, largest_id, load_tokenizer, prompt_tokens, stop_ids

__all__ = [
    "check_tokenizer",
    "config_from_hf",
    "config_from_json",
    "config_to_hf",
    "config_to_json",
    "export_adapters",
    "export_model",
    "import_model",
    "largest_id",
    "load",
    "load_base",
    "load_tokenizer",
    "prompt_tokens",
    "save",
    "save_adapters",
    "stop_ids",
    "with_yarn",
]
