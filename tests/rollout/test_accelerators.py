"""The engine as accelerators run it, whole: their kernels in interpret mode, several layers, and few programs."""

import jax
import numpy as np
import pytest

from configs import polaris_4b
from polaris_jax import config as configs
from polaris_jax.models.presets import PRESETS, ModelConfig
from polaris_jax.ops import paged_attention
from polaris_jax.rollout import RolloutEngine, Sampling, replica
from polaris_jax.rollout.kv_pages import PagePool, pages_for
from polaris_jax.rollout.lengths import Lengths
from polaris_jax.rollout.metrics import GenerateCall
from polaris_jax.rollout.platforms import PLATFORMS
from polaris_jax.rollout.pools import pool_pages
from polaris_jax.rollout.programs import Decoded
from polaris_jax.rollout.records import Response
from polaris_jax.rollout.sampling import Drawn
from polaris_jax.rollout.scheduler import Scheduler
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.sharding.rules import sharded_params
from tests.rollout.conftest import random_prompts, rollout_config

MODEL = ModelConfig(61, 32, 64, 6, 4, 2, 32, rope_theta=100.0, dtype="float32")
PROMPTS = random_prompts(3, longest=40)
SAMPLING = Sampling(max_response_tokens=24, stop_ids=(3, 7))


@pytest.fixture(scope="module")
def params(mesh):
    params = sharded_params(MODEL, mesh, 0)
    return params | {"embedding": params["embedding"] * 15}


def rollouts(engine, params):
    found = engine.generate(params, PROMPTS, 2, SAMPLING, 5)
    return {(r.problem_id, r.sample): (r.tokens.tolist(), r.finish_reason, r.logprobs) for r in found}


@pytest.fixture(scope="module")
def portable(mesh, params):
    return rollouts(RolloutEngine(MODEL, mesh, rollout_config(page_size=16)), params)


@pytest.fixture
def kernel_calls(monkeypatch):
    """Makes the CPU sample as another platform does, its kernels interpreted; counts the kernels that are traced."""

    def start(platform):
        calls = []

        def counted(kernel, **options):
            def call(*args):
                calls.append(kernel.__name__)
                return kernel(*args, **options)

            return call

        monkeypatch.setitem(PLATFORMS, "cpu", PLATFORMS[platform])
        kernel = paged_attention.DECODE_KERNELS[platform]
        monkeypatch.setitem(paged_attention.DECODE_KERNELS, platform, counted(kernel, interpret=True))
        monkeypatch.setattr(paged_attention, "DTYPES", ("float32",))  # for XLA, which stands in for cuDNN
        for name, options in (
            ("cudnn_chunk_attention", {"implementation": "xla"}),
            ("splash_attention", {"interpret": True}),
        ):
            monkeypatch.setattr(paged_attention, name, counted(getattr(paged_attention, name), **options))
        return calls

    return start


@pytest.mark.parametrize(
    ("platform", "kernels"),
    [
        ("gpu", {"gpu_paged_decode", "cudnn_chunk_attention"}),
        ("tpu", {"tpu_paged_decode", "splash_attention"}),
    ],
)
def test_kernels_give_the_same_tokens(mesh, params, portable, kernel_calls, monkeypatch, platform, kernels):
    calls = kernel_calls(platform)
    monkeypatch.setattr(replica, "PREFILL_CHUNKS", (16,))  # prompts are longer, so some chunks follow others
    engine = RolloutEngine(MODEL, mesh, rollout_config(page_size=16))
    found = rollouts(engine, params)
    assert set(calls) == kernels
    assert calls.count(f"{platform}_paged_decode") % MODEL.num_hidden_layers == 0
    assert found.keys() == portable.keys()
    for key, (tokens, reason, logprobs) in portable.items():
        assert found[key][:2] == (tokens, reason)
        np.testing.assert_allclose(found[key][2], logprobs, atol=1e-4)
    rollouts(engine, params)
    assert engine.metrics["compilations"] == 0


class Shapes:
    """Stands in for the programs: each response goes on to its limit, and the shapes of all calls are kept."""

    def __init__(self, platform, steps):
        self.model, self.steps, self.platform, self.seen = None, steps, platform, set()

    def prefill(self, model, platform, params, pool, chunks):
        self.seen.add(("prefill", *chunks.tokens.shape, chunks.table.shape[1]))
        return pool

    def copy(self, pool, sources, targets):
        self.seen.add(("copy", len(sources)))
        return pool

    def decode(self, program, params, pool, slots, numbers, patience):
        self.seen.add(("decode", *slots.table.shape))
        counts = np.minimum(self.steps, slots.limits - slots.produced)
        drawn = Drawn(*np.zeros((2, self.steps, len(counts)), np.int32), None, None)
        return pool, Decoded(drawn, counts, np.zeros(len(counts), bool))


def shapes_of(platform, stage, responses):
    """What the sampler compiles while it decodes that many responses of random lengths, eight to a prompt."""
    config, rng = stage.rollout, np.random.default_rng(0)
    most = stage.data.max_prompt_tokens + config.max_response_tokens - 1
    longest = replica.bucket(pages_for(most, config.page_size))
    mesh = make_mesh(devices=jax.devices()[:1])
    pages = pool_pages(PRESETS["qwen3-4b"].replace(dtype="bfloat16"), mesh, config, longest)
    scheduler = Scheduler(PagePool(pages), config.page_size, config.slots, config.tokens_per_call)
    run, call = Shapes(PLATFORMS[platform], config.tokens_per_call), GenerateCall(0.0, 0, sequence_pages=longest)
    sampler = replica.Replica(run, mesh, None, (), scheduler, Sampling(), call)
    for i in range(responses // 8):
        prompt = np.zeros(rng.integers(1, stage.data.max_prompt_tokens), np.int32)
        group = [Response(str(i), k, np.zeros(2, np.uint32), prompt) for k in range(8)]
        sampler.submit(group, rng.integers(1, config.max_response_tokens, 8).tolist())
    while sampler.responses:
        sampler.start_round()
        while sampler.at_work:
            sampler.proceed(0.0)
    assert call.counters.preempted > 0
    return run.seen


def test_a_stage_of_the_4b_compiles_at_most_twenty_one_programs(monkeypatch):
    """The weight sync, one copy, three numbers of slots, nine first chunks, and a later chunk by the power of two of
    pages before it: 16 to 512, and all 768."""
    ((_, stage), *_) = configs.stages(polaris_4b.get_config())
    monkeypatch.setattr(Lengths, "left", lambda *_: 1)  # else few run at once, and none is preempted
    seen = shapes_of("gpu", stage, responses=48)
    batches = {64: (1, 4, 16, 64), 256: (1, 4, 16), 1024: (1, 4)}
    first = {("prefill", B, T, 0) for T, sizes in batches.items() for B in sizes}
    later = {("prefill", 1, 1024, width) for width in (16, 32, 64, 128, 256, 512, 768)}
    possible = first | later | {("decode", slots, 768) for slots in (16, 64, 256)} | {("copy", 16)}
    assert len(possible) + 1 == 21
    assert seen <= possible
    assert seen & later
