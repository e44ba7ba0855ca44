"""What every job starts from: the model, its parameters and its tokenizer, as the config names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from polaris_jax import config as configs
from polaris_jax import hf
from polaris_jax.data import arithmetic, gym
from polaris_jax.data.cleaning import verifiable
from polaris_jax.data.mixture import mixed_sources
from polaris_jax.data.problems import chat_rows, load_problems
from polaris_jax.data.prompts import make_prompts
from polaris_jax.data.rows import summary
from polaris_jax.errors import UserError
from polaris_jax.files import write_whole
from polaris_jax.hf.export import write_tokenizer
from polaris_jax.models.lora import checksum, freeze, join
from polaris_jax.models.presets import PRESETS, ModelConfig
from polaris_jax.sharding.multihost import is_writer
from polaris_jax.sharding.rules import sharded_adapters, sharded_params
from polaris_jax.supervision import heartbeat, patience
from polaris_jax.types import Problem, Prompt

ARITHMETIC_PROBLEMS = 4096  # of the endless supply


def load_tokenizer(config: ConfigDict) -> PreTrainedTokenizerBase:
    """The tokenizer that `config.model` names. Raises UserError where it cannot be had or has no chat template."""
    if task := arithmetic.TASKS.get(config.model.tokenizer):
        return arithmetic.build_tokenizer(config.data.suffix, task)
    source = config.model.tokenizer or config.model.path
    if not source:
        raise UserError("config.model.tokenizer: empty; name a tokenizer, or give config.model.path")
    return hf.load_tokenizer(source)


@patience()
def load_model(
    config: ConfigDict, mesh: Mesh, tokenizer: PreTrainedTokenizerBase, *, param_dtype: str = "float32"
) -> tuple[ModelConfig, Any]:
    """The model and its parameters on `mesh`: from `config.model.path`, else random of `config.model.preset`.

    param_dtype: of what is loaded. Raises UserError where neither is given, the preset is unknown, the path holds no
    model that fits, or the tokenizer has more tokens than the model.
    """
    heartbeat("loading the model")
    c = config.model
    if not c.path and c.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"config.model.preset: expected one of {known}, or set config.model.path; found {c.preset!r}")
    model, params = hf.load(c.path, mesh=mesh, param_dtype=param_dtype) if c.path else (PRESETS[c.preset], None)
    hf.check_tokenizer(tokenizer, c.tokenizer or c.path, vocab_size=model.vocab_size)
    known = 1 + hf.largest_id(tokenizer)
    model = model.replace(dtype=c.dtype, remat=c.remat, known_tokens=known if known < model.vocab_size else 0)
    return model, sharded_params(model, mesh, config.seed) if params is None else params


def load_to_train(config: ConfigDict, mesh: Mesh, tokenizer: PreTrainedTokenizerBase) -> tuple[ModelConfig, Any]:
    """As `load_model`; with `config.model.lora_rank` a frozen base, and new adapters that as yet change nothing.

    Raises UserError where there is no base.
    """
    c, lora = config.model, configs.lora(config)
    if lora is None:
        return load_model(config, mesh, tokenizer)
    if not c.path:
        raise UserError("config.model.lora_rank: adapters need a model that they adapt; set config.model.path")
    model, base = load_model(config, mesh, tokenizer, param_dtype=c.dtype)
    path = Path(c.path).expanduser()
    lora = replace(lora, base=str(path.absolute()) if path.is_dir() else c.path, checksum=checksum(base))
    model = model.replace(lora=lora)
    return model, join(sharded_adapters(model, mesh, config.seed), freeze(base, model, release=True))


def load_train_problems(config: ConfigDict) -> list[Problem]:
    """The problems of `config.data.train`, or of `config.data.mix`, that can be verified.

    The others are counted and listed in the log. Problems of a mixture have its names as their sources; one that two of
    them hold is the first one's.
    """
    heartbeat("loading problems")
    if not config.data.mix:
        return _load_source(config.data.train, config)
    found: dict[str, Problem] = {}
    for name, (source, _) in zip(mixed_sources(config.data.mix), config.data.mix, strict=True):
        for problem in _load_source(source, config):
            found.setdefault(problem.id, replace(problem, source=name))
    return list(found.values())


def _load_source(source: str, config: ConfigDict) -> list[Problem]:
    suffix, seed = config.data.suffix, config.seed
    if task := arithmetic.TASKS.get(source):
        return arithmetic.problems("train", ARITHMETIC_PROBLEMS, suffix, seed, task)
    if not source:
        raise UserError("config.data.train: empty; name a parquet or jsonl file, a directory or a hub dataset")
    generated = source.startswith(gym.PREFIX)
    loaded = gym.problems(source, "train", gym.PROBLEMS, suffix, seed) if generated else None
    problems, faults = verifiable(loaded or load_problems(source, suffix=suffix))
    if faults:
        logging.warning("%d of %s skipped: %s", len(faults), source, summary(faults))
    if not problems:
        raise UserError(f"{source}: no ground truth can be verified: {summary(faults)}")
    return problems


def training_prompts(stages: Sequence[ConfigDict], tokenizer: PreTrainedTokenizerBase) -> list[list[Prompt]]:
    """The prompts of each stage; stages with the same data share one list, which is loaded once.

    Raises UserError where a stage's rows, prompts and responses do not fit.
    """
    loaded: dict[tuple[str, str, int], list[Prompt]] = {}
    found = []
    for stage in stages:
        key = stage.data.train, str(stage.data.mix), stage.data.max_prompt_tokens
        if key not in loaded:
            loaded[key] = make_prompts(load_train_problems(stage), tokenizer, stage.data.max_prompt_tokens)
        found.append(loaded[key])
        if stage.rollout.prompts > len(loaded[key]):
            raise UserError(
                f"config.rollout.prompts: {stage.rollout.prompts} a step, but there are {len(loaded[key])} problems "
                f"with prompts of at most config.data.max_prompt_tokens={stage.data.max_prompt_tokens}"
            )
        longest = max(len(prompt.tokens) for prompt in loaded[key]) + stage.rollout.max_response_tokens
        check_rows(stage, longest, stage.rollout.prompts * stage.rollout.samples)
    return found


def load_conversations(config: ConfigDict) -> list[list[dict[str, str]]]:
    """The conversations of `config.sft.data`."""
    heartbeat("loading conversations")
    if task := arithmetic.TASKS.get(config.sft.data):
        return arithmetic.conversations(config.sft.steps * config.sft.batch_size, config.data.suffix, config.seed, task)
    if not config.sft.data:
        raise UserError("config.sft.data: empty; name a parquet or jsonl file, a directory or a hub dataset")
    return chat_rows(config.sft.data)


def check_rows(config: ConfigDict, longest: int, sequences: int) -> None:
    """Raises UserError where a sequence of `longest` tokens is longer than every row, or where the `sequences` of a
    batch or the places of a row cannot be split evenly."""
    row = max(config.updates.row_lengths)
    if row < longest - 1:
        raise UserError(
            f"config.updates.row_lengths: the longest is {row}, but sequences have up to {longest} tokens, "
            f"which take {longest - 1}"
        )
    if sequences % config.updates.minibatches:
        raise UserError(
            f"config.updates.minibatches: {config.updates.minibatches} do not divide the {sequences} sequences of a "
            "batch"
        )
    for length in config.updates.row_lengths:
        if length % max(config.mesh.context, 1):
            raise UserError(
                f"config.updates.row_lengths: {length} cannot be split over config.mesh.context={config.mesh.context}"
            )


def save_model_files(workdir: Path, model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes model.json and tokenizer/ so that the run's directory can be loaded and exported by itself.

    Raises UserError where the run there has adapters of another base.
    """
    _check_base(workdir, model)
    if not is_writer():
        return
    write_whole(workdir / "model.json", hf.config_to_json(model))
    (workdir / "tokenizer").mkdir(exist_ok=True)
    source = Path(tokenizer.name_or_path)  # its files as they are, where it has some: transformers writes others
    write_tokenizer(source if tokenizer.name_or_path and source.is_dir() else tokenizer, workdir / "tokenizer")


def _check_base(workdir: Path, model: ModelConfig) -> None:
    path = workdir / "model.json"
    if model.lora is None or not path.exists() or not any(workdir.glob("checkpoints/[0-9]*")):
        return
    before = hf.config_from_json(path.read_text(encoding="utf-8"), path).lora
    if before and before.checksum != model.lora.checksum:
        raise UserError(
            f"config.model.path: {model.lora.base} in {model.dtype} is not what the adapters in {workdir} were trained "
            f"on; that was {before.base}. Put it back, or give another directory"
        )
