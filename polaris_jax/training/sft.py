"""Supervised fine-tuning on conversations: the same packing, log-probs and update as GRPO, with another loss."""

from __future__ import annotations

import time
from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from polaris_jax import config as configs
from polaris_jax import supervision
from polaris_jax.data.curriculum import draw
from polaris_jax.data.prompts import tokenize_conversations
from polaris_jax.errors import UserError
from polaris_jax.loggers import check_installed
from polaris_jax.ops.attention import alone_in_rows
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.runs.start import check_rows, load_conversations, load_to_train, load_tokenizer, save_model_files
from polaris_jax.runs.workdir import FREE, check_config, hold, write_config
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.multihost import any_process, is_writer
from polaris_jax.sharding.rows import row_groups
from polaris_jax.training import not_finite
from polaris_jax.training.checkpoint import Checkpoints, any_steps
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger
from polaris_jax.training.state import init_state
from polaris_jax.training.update import check_finite, make_update

# Sections that SFT does not read, and keys that it sets itself or that those of `config.sft` take the place of.
UNUSED = ("stages", "rollout", "search", "algorithm", "reward", "training", "difficulty", "evaluation")
REPLACED = (
    *("optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps"),
    *("updates.minibatches", "updates.epochs"),
)


def run(config: ConfigDict, workdir: str | Path, *, allow_changed: tuple[str, ...] = ()) -> History:
    """Fine-tunes on `config.sft.data`, or resumes the run in `workdir`.

    Each update takes the next `config.sft.batch_size` conversations, of a seeded order or of the file's, and trains on
    the assistant's tokens. allow_changed: keys that the config of the run in `workdir` may have otherwise. Returns the
    metrics of every step. Raises UserError, before anything is compiled, where config, data, model and workdir do not
    fit together.
    """
    configs.check(config)
    check_installed(config.training.loggers)
    with hold(workdir) as held, supervision.display("SFT"):
        return _run(config, held, allow_changed)


def _run(given: ConfigDict, workdir: Path, allow_changed: tuple[str, ...]) -> History:
    config = as_sft(given)
    if any_steps(workdir):
        check_config(given, workdir, allowed=allow_changed, free=(*FREE, *UNUSED, *REPLACED))
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config)
    conversations = tokenize_conversations(tokenizer, load_conversations(config))
    check_rows(config, max(len(tokens) for tokens, _ in conversations), config.sft.batch_size)
    batch_size, count = config.sft.batch_size, len(conversations)
    if batch_size > count:
        raise UserError(f"config.sft.batch_size: {batch_size} an update, but there are {count} conversations")
    model, params = load_to_train(config, mesh, tokenizer)
    state = init_state(model, config, mesh, params)
    checkpoints = Checkpoints(workdir, config.training)
    state, host = checkpoints.restore(state) or (state, HostState())
    save_model_files(workdir, model, tokenizer)
    write_config(given, workdir)
    place = host.curriculum

    update = make_update(model, config, mesh)
    layout = dict(groups=row_groups(mesh), alone=alone_in_rows(mesh, model.dtype))
    keys = dict(configs.flatten(given))
    steps, start = config.training.steps, int(state.step)
    with (
        supervision.supervised(config, workdir),
        checkpoints,
        MetricsLogger(workdir, "SFT", steps, start, ("loss", "tokens_per_s"), config.training.loggers, keys) as log,
    ):
        for step in range(start + 1, steps + 1):
            began = time.perf_counter()
            batch, place = draw(place, conversations, batch_size, config.seed, shuffle=config.sft.shuffle)
            batches, packing = pack([Sequence(tokens, mask) for tokens, mask in batch], config.updates, **layout)
            state, metrics = update(state, batches, 1.0)
            seconds = time.perf_counter() - began
            speed = {"tokens_per_s": sum(len(tokens) for tokens, _ in batch) / seconds, "seconds/step": seconds}
            metrics = packing | metrics | speed | {"seconds/checkpoint": checkpoints.seconds}
            log.write(step, metrics)
            skipped = metrics["skipped"] > 0  # a replay needs this state
            if skipped and is_writer():
                not_finite.keep(workdir, step - 1, batches, 1.0, config)
            due = checkpoints.due(step, config.training) or step == steps or skipped
            if due or any_process(supervision.requested()):
                checkpoints.save(state, HostState(place), metrics, first=log.sync)
            supervision.check()
            check_finite(metrics["skipped_in_a_row"], config)
        return log.history()


def as_sft(config: ConfigDict) -> ConfigDict:
    """The config with the SFT's loss, steps and optimizer where GRPO's were, and nothing else that is GRPO's."""
    defaults = {f"algorithm.{key}": value for key, value in base.get_config().algorithm.items()}
    return configs.override(
        config,
        {
            **defaults,
            "algorithm.loss": "sft",
            "updates.minibatches": 1,
            "updates.epochs": 1,
            "training.steps": config.sft.steps,
            "training.checkpoint_every": config.sft.checkpoint_every,
            "optimizer.learning_rate": config.sft.learning_rate,
            "optimizer.schedule": config.sft.schedule,
            "optimizer.warmup_steps": config.sft.warmup_steps,
        },
    )
