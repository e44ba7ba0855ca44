"""A tiny model, random prompts, and the obvious sampler that the engine is compared with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from polaris_jax.models.presets import ModelConfig
from polaris_jax.models.transformer import Transformer, unembed, unembedding
from polaris_jax.rollout.sampling import gumbels, next_token, sequence_key, split
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from polaris_jax.types import Problem, Prompt

MODEL = ModelConfig(61, 32, 64, 2, 4, 2, 8, rope_theta=100.0, dtype="float32")
LENGTH = 160  # the obvious sampler pads to it


@pytest.fixture(scope="session")
def model():
    return MODEL


@pytest.fixture(scope="session")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def params(mesh):
    """Random, with an embedding so large that distributions are not flat."""
    params = sharded_params(MODEL, mesh, 0)
    return params | {"embedding": params["embedding"] * 15}


def rollout_config(**changes):
    """The `rollout` section with small defaults."""
    config = get_config().rollout
    config.update(dict(slots=3, page_size=8, tokens_per_call=8, max_response_tokens=40) | changes)
    return config


def random_prompts(count: int, seed: int = 0, longest: int = 40) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(2, 61, rng.integers(1, longest)).astype(np.int32) for _ in range(count)]
    return [Prompt(Problem(f"p{i}", "", ()), each) for i, each in enumerate(tokens)]


@functools.cache
def _obvious_step(model, sampling):
    numbers = jax.tree.map(jnp.asarray, split(sampling)[1])

    @jax.jit
    def step(params, tokens, length, key, position):
        spot = jnp.arange(tokens.shape[1])[None]
        hidden, _ = Transformer(model).apply({"params": params}, tokens, spot, (spot < length).astype(jnp.int32))
        logits = unembed(hidden[:, length - 1], unembedding(params, model))
        noise = gumbels(key[None], position[None], model.vocab_size)
        return next_token(logits, noise, position[None], sampling, numbers)

    return step


@functools.cache
def _logits(model):
    @jax.jit
    def logits(params, tokens, segment_ids):
        spot = jnp.arange(tokens.shape[1])[None]
        hidden, _ = Transformer(model).apply({"params": params}, tokens, spot, segment_ids)
        return unembed(hidden[0], unembedding(params, model))

    return logits


def trainer_logits(model, params, rollout):
    """Logits of each token of a response, float32 [T, V], as the trainer has them: the sequence at once, no cache."""
    first, end = len(rollout.prompt_tokens), len(rollout.prompt_tokens) + len(rollout.tokens)
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, :end] = np.concatenate([rollout.prompt_tokens, rollout.tokens])
    return _logits(model)(params, tokens, (np.arange(LENGTH) < end)[None].astype(np.int32))[first - 1 : end - 1]


def obvious(model, params, prompt: Prompt, sample: int, sampling, seed: int, limit: int):
    """Tokens, log-probs and reason of one response: no cache, the whole sequence again for each token."""
    step = _obvious_step(model, sampling)
    key = sequence_key(seed, prompt.problem.id, sample)
    tokens, logprobs = list(prompt.tokens), []
    while len(logprobs) < limit:
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        drawn = step(params, padded, len(tokens), key, np.int32(len(logprobs)))
        tokens.append(int(drawn.tokens[0]))
        logprobs.append(float(drawn.logprobs[0]))
        if tokens[-1] in sampling.stop_ids and len(logprobs) > len(sampling.prefix):
            return tokens[len(prompt.tokens) :], logprobs, "stop"
    return tokens[len(prompt.tokens) :], logprobs, "length"
