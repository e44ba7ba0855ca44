"""Checkpoints and tokenizers that are wrong or damaged: the scripts say so in one line, before anything is compiled."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from polaris_jax import hf
from tests.conftest import CONFIGS, refusal
from tests.experiments.test_fuzz import DAMAGES, SCALARS, assert_refused_or_accepted, damaged

from .conftest import save_tokenizer

CONFIG = f"--config={CONFIGS}/tiny.py"


@pytest.fixture(autouse=True, scope="module")
def no_hub():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def reshape(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:7]


NORM = "model.norm.weight"
CASES = {  # what is done to a Hugging Face directory, and what is said of it
    "architecture": (lambda d: edit_json(d / "config.json", model_type="llama"), "model_type 'llama' is not supported"),
    "shape of the config": (lambda d: edit_json(d / "config.json", hidden_size=-1), "hidden_size must be a positive"),
    "rope": (lambda d: edit_json(d / "config.json", rope_parameters=[1]), "rope_parameters must be an object"),
    "missing tensor": (
        lambda d: edit_tensors(d / "model.safetensors", lambda tensors: tensors.pop(NORM)),
        f"tensor {NORM} is missing, expected shape [30]",
    ),
    "extra tensor": (
        lambda d: edit_tensors(d / "model.safetensors", lambda tensors: tensors.update(extra=tensors[NORM].copy())),
        "model.safetensors: tensor extra is not part of this model",
    ),
    "misshapen tensor": (
        lambda d: edit_tensors(d / "model.safetensors", reshape),
        f"model.safetensors: tensor {NORM} has shape [7], expected [30]",
    ),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
        "model.safetensors: not a whole safetensors file",
    ),
    "index": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/../x/passwd"}}'),
        "passwd: no such file, though the checkpoint's index names it",
    ),
    "no chat template": (lambda d: save_tokenizer_over(d, chat_template=None), "no chat template"),
    "broken chat template": (
        lambda d: save_tokenizer_over(d, chat_template="{% if"),
        "the chat template cannot be used",
    ),
    "no EOS": (lambda d: save_tokenizer_over(d, eos_token=None), "no EOS token"),
    "large vocabulary": (
        lambda d: save_tokenizer_over(d, words=[f"w{i}" for i in range(50)] + ["</s>", "<pad>"]),
        "token ids go up to 51, but the model's embedding has 37 rows",
    ),
    "stop tokens": (
        lambda d: edit_json(d / "generation_config.json", eos_token_id=["x"]),
        "generation_config.json: eos_token_id must be a token id or a list of them, found ['x']",
    ),
}


def save_tokenizer_over(directory, **options):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).unlink(missing_ok=True)
    save_tokenizer(directory, **options)


@pytest.mark.parametrize("case", CASES)
def test_of_hugging_face(case, qwen3, copy_of, tmp_path):
    damage, words = CASES[case]
    directory = copy_of(qwen3)
    damage(directory)
    assert words in refusal("import_hf", f"--source={directory}", f"--target={tmp_path}/new")
    flags = [CONFIG, f"--config.model.path={directory}", "--config.model.tokenizer=", "--config.rollout.prompts=1"]
    assert words in refusal("train", *flags, f"--workdir={tmp_path}/run")
    assert words in refusal("evaluate", CONFIG, f"--model={directory}", f"--output={tmp_path}/run")
    assert not (tmp_path / "new").exists()


def test_a_later_stage_that_does_not_fit_is_refused_at_the_start(qwen3, tmp_path):
    stages = "({'steps': 1}, {'rollout.cache_gib': 1e-6})"
    flags = [CONFIG, f"--config.model.path={qwen3}", "--config.model.tokenizer=", "--config.rollout.prompts=1"]
    said = refusal("train", *flags, f"--workdir={tmp_path}/run", f"--config.stages={stages}")
    assert "rollout.cache_gib=1e-06 has" in said


@pytest.fixture(scope="module")
def ours(qwen3, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ours") / "model"
    hf.import_model(qwen3, directory)
    return directory


OURS = {
    "another shape": (lambda d: edit_json(d / "model.json", vocab_size=38), "does not fit model.json: parameter embed"),
    "wrong type": (lambda d: edit_json(d / "model.json", vocab_size="38"), "model.json: vocab_size must be a positive"),
    "broken model.json": (lambda d: (d / "model.json").write_text("{"), "model.json: not readable as json"),
    "no parameters": (
        lambda d: shutil.rmtree(d / "params"),
        "no parameters here: neither params/ nor checkpoints/STEP/",
    ),
    "half the parameters": (lambda d: shutil.rmtree(d / "params" / "d"), "params: not a whole checkpoint"),
}


@pytest.mark.parametrize("case", OURS)
def test_of_ours(case, ours, copy_of, tmp_path):
    damage, words = OURS[case]
    directory = copy_of(ours)
    damage(directory)
    assert words in refusal("export_hf", f"--source={directory}", f"--target={tmp_path}/new")
    assert words in refusal("evaluate", CONFIG, f"--model={directory}", f"--output={tmp_path}/run")


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
CHANGES = st.dictionaries(st.integers(0, 40), SCALARS | st.lists(SCALARS, max_size=2), min_size=1, max_size=2)


def damage_and_run(script, directory, name, damage):
    path, target = directory / name, directory.with_name("target")
    content = path.read_bytes()
    if isinstance(damage, dict) and name.endswith(".json"):
        data = json.loads(content)
        data |= {list(data)[place % len(data)]: value for place, value in damage.items()}
        path.write_text(json.dumps(data))
    elif not isinstance(damage, dict):
        path.write_bytes(damaged(content, damage))
    try:
        assert_refused_or_accepted(script, f"--source={directory}", f"--target={target}")
    finally:
        path.write_bytes(content)
        shutil.rmtree(target, ignore_errors=True)


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz(25)
@given(st.sampled_from(FILES), DAMAGES | CHANGES)
def test_damaged_files_of_hugging_face(damageable, name, damage):
    damage_and_run("import_hf", damageable, name, damage)


@pytest.mark.slow
@fuzz(1000)
@given(st.sampled_from(FILES), DAMAGES | CHANGES)
def test_many_damaged_files_of_hugging_face(damageable, name, damage):
    damage_and_run("import_hf", damageable, name, damage)


@pytest.fixture
def damageable(qwen3, copy_of):
    return copy_of(qwen3)


@fuzz(20)
@given(st.integers(0, 100), DAMAGES | CHANGES)
def test_damaged_files_of_ours(damageable_ours, number, damage):
    files = sorted(path for path in damageable_ours.rglob("*") if path.is_file())
    name = "model.json" if isinstance(damage, dict) else str(files[number % len(files)].relative_to(damageable_ours))
    damage_and_run("export_hf", damageable_ours, name, damage)


@pytest.fixture
def damageable_ours(ours, copy_of):
    return copy_of(ours)
