"""Training of adapters alone, from a Hugging Face model to one: learning, resuming, exporting in both forms."""

import ast
import json
import re
import shutil

import jax
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from polaris_jax import hf
from polaris_jax.data import arithmetic
from polaris_jax.data.problems import SUFFIX
from polaris_jax.errors import UserError
from polaris_jax.hf import native
from polaris_jax.models.lora import merge, split
from polaris_jax.models.transformer import Transformer, unembed, unembedding
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import loop, replay, sft
from tests.conftest import EvenLengthPool, killed, refusal, run_script, smaller_config

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

KINDS = {"qwen3": dict(head_dim=16, tie_word_embeddings=True), "qwen2": dict(tie_word_embeddings=False)}
LORA = {
    "model.preset": "",
    "model.lora_rank": 4,
    "optimizer.learning_rate": 1e-2,
    "sft.learning_rate": 1e-2,
    "sft.warmup_steps": 0,
}
STEPS = {"training.steps": 12, "training.checkpoint_every": 6, "algorithm.kl": 1e-3}
STEPS |= {"rollout.prompts": 8, "rollout.samples": 8, "rollout.slots": 64}


class SevenPool(EvenLengthPool):
    """Takes responses for right in which two words have a 7, of random ones about half."""

    def submit(self, response, answer):
        sevens = sum("7" in word for word in response.split())
        return super().submit("" if sevens >= 2 else "1", answer)


def save_base(directory, kind, seed=0):
    """A random model for the demo's tokenizer, as transformers writes it."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, vocab_size=192, max_position_embeddings=512, initializer_range=0.2)
    tokenizer = arithmetic.build_tokenizer(SUFFIX)
    config = AutoConfig.for_model(kind, **shape, **KINDS[kind], eos_token_id=tokenizer.eos_token_id)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A directory with qwen3/ and qwen2/."""
    directory = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        save_base(directory / kind, kind)
    return directory


@pytest.fixture(scope="module")
def train():
    """train(workdir, base, **overrides): a run of GRPO in which sevens are right."""

    def start(workdir, base, allow_changed=(), **overrides):
        config = smaller_config(**LORA | STEPS | {"model.path": str(base)} | overrides)
        return loop.run(config, workdir, allow_changed=allow_changed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
        patched.setattr("polaris_jax.training.loop.verifier_pool", lambda config: SevenPool())
        yield start


@pytest.fixture(scope="module")
def unbroken(bases, train, tmp_path_factory):
    """A whole run, and its directory."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return train(workdir, bases / "qwen3"), workdir


def without_times(rows):
    left_out = re.compile("seconds.*|rollout/.*|.*(_s|seconds|compilations|peak_share|device_hours)")
    return [{k: v for k, v in row.items() if not left_out.fullmatch(k)} for row in rows]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def logits(source, tokens):
    model, params = hf.load(source, dtype="float32")
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    hidden, _ = jax.jit(Transformer(model).apply)({"params": params}, tokens, positions, np.ones_like(tokens))
    return np.asarray(unembed(hidden, unembedding(params, model)))


def test_grpo_learns_resumes_to_the_bit_and_exports_both_forms(bases, train, unbroken, tmp_path, monkeypatch):
    history, workdir = unbroken
    frame = history.frame()
    assert frame["reward"][-4:].mean() > frame["reward"][:2].mean() + 0.1
    assert (frame["update/sampler_trainer_gap"] < 1e-4).all()  # merged, the sampler's model is the trainer's
    assert frame["update/kl_reference"].iloc[0] < 1e-9  # the reference is the base, from which adapters begin
    assert frame["update/kl_reference"].iloc[-1] > 1e-6

    killed(monkeypatch, loop, "train_step", at=9)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", bases / "qwen3")
    resumed = train(tmp_path / "broken", bases / "qwen3")
    assert without_times(resumed.rows) == without_times(history.rows)
    assert_same(hf.load(tmp_path / "broken")[1], hf.load(workdir)[1])
    model, kept = replay.load(workdir, make_mesh(devices=jax.devices()[:1]), 12)
    assert_same(merge(kept, model.lora), hf.load(workdir)[1])
    check_exports(workdir, bases / "qwen3", tmp_path)


def check_exports(run, base, directory):
    """The run, both exports, and peft beside the base give the same logits; a checkpoint holds adapters alone."""
    saved = native.load_params(run, make_mesh(devices=jax.devices()[:1]))[1]
    assert split(saved) == (saved, {})
    metadata = json.loads(next(run.glob("checkpoints/*/state/_METADATA")).read_text())
    names = map(ast.literal_eval, metadata["tree_metadata"])
    assert {name[-1] for name in names if name[0] == "params"} == {"lora_a", "lora_b"}

    done = run_script("export_hf", f"--source={run}", f"--target={directory / 'adapters'}", "--adapters")
    assert (done.code, done.err) == (0, "")
    hf.export_model(run, directory / "merged", dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 176, (2, 30)).astype(np.int32)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        theirs = torch.tensor(tokens).long()
        untrained = plain(theirs).logits.numpy()
        merged = AutoModelForCausalLM.from_pretrained(directory / "merged")(theirs).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(plain, directory / "adapters")(theirs).logits.numpy()
    for found in (merged, logits(run, tokens), logits(directory / "merged", tokens)):
        np.testing.assert_allclose(found, adapted, atol=1e-4)
    assert np.abs(untrained - adapted).max() > 0.1
    described = json.loads((directory / "adapters" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(base)
    assert (directory / "adapters" / "tokenizer.json").exists()


@pytest.mark.slow
def test_sft_beside_a_base_of_8_bits_learns_resumes_to_the_bit_and_exports_both_forms(bases, tmp_path, monkeypatch):
    config = smaller_config(**LORA | {"model.path": str(bases / "qwen2"), "model.lora_base": "int8", "sft.steps": 6})
    whole = sft.run(config, tmp_path / "unbroken")
    losses = [row["loss"] for row in whole.rows]
    assert losses[-1] < losses[0] - 0.3
    killed(monkeypatch, sft, "draw", at=4)
    with pytest.raises(KeyboardInterrupt):
        sft.run(config, tmp_path / "broken")
    assert [row["loss"] for row in sft.run(config, tmp_path / "broken").rows] == losses
    assert_same(hf.load(tmp_path / "broken")[1], hf.load(tmp_path / "unbroken")[1])
    check_exports(tmp_path / "unbroken", bases / "qwen2", tmp_path)


def test_what_cannot_be_is_refused_in_words(bases, train, unbroken, tmp_path):
    base = bases / "qwen3"
    shutil.copytree(unbroken[1], tmp_path / "run")
    for changed in ({"model.lora_rank": 8}, {"model.lora_rank": 0}, {"model.lora_targets": ("q_proj",)}):
        (key,) = changed
        words = rf"other adapters: config.{key}: .* -> .*; give another directory. With config.model.path=.* a new run"
        with pytest.raises(UserError, match=words):
            train(tmp_path / "run", base, (key,), **changed)
    with pytest.raises(UserError, match=r"config.model.lora_alpha: 32.0 -> 8.0; give another directory, or resume"):
        train(tmp_path / "run", base, **{"model.lora_alpha": 8.0})
    with pytest.raises(UserError, match=r"lora_rank: adapters need a model that they adapt; set config.model.path"):
        train(tmp_path / "none", "", **{"model.preset": "tiny"})

    moved = tmp_path / "moved"
    save_base(moved, "qwen3", seed=1)
    words = r"config.model.path: .*moved in float32 is not what the adapters in .*run were trained on; that was .*qwen3"
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", moved, ("model.path",))
    described = tmp_path / "run" / "model.json"
    text = described.read_text()
    described.write_text(text.replace(str(base), str(moved)))
    with pytest.raises(UserError, match=r"belong to the base model .*moved, which has other weights now"):
        hf.export_model(tmp_path / "run", tmp_path / "export")
    described.write_text(text.replace(str(base), str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"base model .*nowhere; put it back, or name its new place in model.json: "):
        hf.export_model(tmp_path / "run", tmp_path / "export")
    export = ("export_hf", f"--target={tmp_path / 'export'}", "--adapters")
    assert "leave --yarn_factor" in refusal(*export, f"--source={tmp_path / 'run'}", "--yarn_factor=1.5")
    native.save_params(*hf.load(base)[::-1], tmp_path / "run" / "tokenizer")
    assert "no adapters: all of the model was" in refusal(*export, f"--source={tmp_path / 'run' / 'tokenizer'}")
