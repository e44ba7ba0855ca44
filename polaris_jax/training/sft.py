"""Supervised fine-tuning on conversations: the same packing, log-probs and update as GRPO, with another loss."""

from __future__ import annotations

import time
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax import config as configs
from polaris_jax.data.curriculum import Curriculum, draw
from polaris_jax.data.prompts import tokenize_conversations
from polaris_jax.errors import UserError
from polaris_jax.rl.packing import Sequence, pack
from polaris_jax.rl.update import check_finite, make_update
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import checkpoint
from polaris_jax.training.host import HostState
from polaris_jax.training.metrics import History, MetricsLogger
from polaris_jax.training.start import check_rows, load_conversations, load_model, load_tokenizer, save_model_files
from polaris_jax.training.state import init_state


def run(config: ConfigDict, workdir: str | Path) -> History:
    """Fine-tunes on `config.sft.data`, or goes on where the run in `workdir` stopped.

    Each update takes the next `config.sft.batch_size` conversations, of a seeded order or of the file's, and learns the
    assistant's tokens. Returns the metrics of every step. Raises UserError, before anything is compiled, where config,
    data, model and workdir do not fit together.
    """
    configs.check(config)
    config = _as_sft(config)
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config)
    conversations = tokenize_conversations(tokenizer, load_conversations(config))
    check_rows(config, max(len(tokens) for tokens, _ in conversations))
    batch_size, count = config.sft.batch_size, len(conversations)
    if batch_size > count:
        raise UserError(f"config.sft.batch_size: {batch_size} an update, but there are {count} conversations")
    model, params = load_model(config, mesh, tokenizer)
    state = init_state(model, config, mesh, params)
    workdir = checkpoint.prepare_workdir(workdir)
    save_model_files(workdir, model, tokenizer)

    place = Curriculum()
    checkpoints = checkpoint.open_checkpoints(workdir, config.training.keep)
    if restored := checkpoint.restore(checkpoints, state):
        state, host = restored
        place = host.curriculum

    update = make_update(model, config, mesh)
    steps, start = config.training.steps, int(state.step)
    with MetricsLogger(workdir, "SFT", steps, start, ("loss", "tokens_per_s")) as log:
        for step in range(start + 1, steps + 1):
            began = time.perf_counter()
            batch, place = draw(place, conversations, batch_size, config.seed, shuffle=config.sft.shuffle)
            batches, packing = pack([Sequence(tokens, mask) for tokens, mask in batch], config.updates)
            state, metrics = update(state, batches, 1.0)
            seconds = time.perf_counter() - began
            speed = {"tokens_per_s": sum(len(tokens) for tokens, _ in batch) / seconds, "seconds/step": seconds}
            log.write(step, packing | metrics | speed)
            stuck = metrics["skipped_in_a_row"] >= config.updates.max_skipped
            if step % config.training.checkpoint_every == 0 or step == steps or stuck:
                checkpoint.save(checkpoints, state, HostState(place))
            check_finite(metrics["skipped_in_a_row"], config)
        return log.history()


def _as_sft(config: ConfigDict) -> ConfigDict:
    """The config with the SFT's loss, steps and optimizer where GRPO's were."""
    return configs.override(
        config,
        {
            "algorithm.loss": "sft",
            "training.steps": config.sft.steps,
            "training.checkpoint_every": config.sft.checkpoint_every,
            "optimizer.learning_rate": config.sft.learning_rate,
            "optimizer.schedule": config.sft.schedule,
            "optimizer.warmup_steps": config.sft.warmup_steps,
        },
    )
