"""What a user can get wrong in configs and data: each script says it in one line, with exit code 2, before it compiles.

Checkpoints and tokenizers are in tests/hf/test_bad_checkpoints.py.
"""

import json

import pandas as pd
import pytest

from polaris_jax.evaluation import report
from tests.conftest import refusal, run_script

TINY = "--config=configs/tiny.py"


@pytest.fixture(autouse=True)
def here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr("polaris_jax.runs.start.ARITHMETIC_PROBLEMS", 64)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("script", ["train", "sft", "polaris", "difficulty", "evaluate", "temperature"])
def test_every_script_refuses_a_misspelt_key_a_wrong_type_and_an_impossible_value(script, tmp_path):
    output = f"--{'workdir' if script in ('train', 'sft', 'polaris') else 'output'}={tmp_path}/run"
    for override, words in [
        ("rollout.smaples=3", 'Did you mean "samples"'),
        ("rollout.samples=many", "config.rollout.samples=many: "),
        ("rollout.top_p=7", "config.rollout.top_p: expected more than 0 and at most 1, found 7.0"),
        ("mesh.data=3", "config.mesh: data=3 x fsdp=-1 x tensor=1 x context=1 does not fit 1 devices"),
        ("stages=({'temprature': 1},)", "config.stages: no such key `temprature`; did you mean `temperature`?"),
    ]:
        assert words in refusal(script, TINY, output, "--config.sft.steps=2", f"--config.{override}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("updates.minibatches=3", "config.updates.minibatches: 3 do not divide the 128 sequences of a batch"),
        ("rollout.prompts=65", "config.rollout.prompts: 65 a step, but there are 64 problems"),
        ("updates.row_lengths=(8,)", "config.updates.row_lengths: the longest is 8, but sequences have up to"),
        ("data.max_prompt_tokens=3", "but there are 0 problems with prompts of at most config.data.max_prompt_tokens"),
        ("stages=({'steps': 0},)", "config.training.steps: expected at least 1, found 0"),
        ("stages=({'temperature': 'search'},)", "config.stages: the first stage needs a number as its temperature"),
        ("model.preset=huge", "config.model.preset: expected one of tiny, "),
        ("model.path=owner/model", "owner/model: no such directory here, and the Hugging Face hub is not reachable"),
        ("model.path=owner/model", "or give a local directory with "),
        ("data.train=owner/name", "owner/name: neither a file here nor a hub dataset with split 'train'"),
        ("data.train=owner/name", "a local .jsonl, .json, .parquet file or a directory of them may be given instead"),
        ("data.train=https://me:secret@host/x", "config.data.train: holds a secret"),
    ],
)
def test_what_does_not_fit_together(override, words, tmp_path):
    flags = ["--config.model.tokenizer="] if override.startswith("model.path") else []
    assert words in refusal("train", TINY, f"--workdir={tmp_path}/run", f"--config.{override}", *flags)
    assert not (tmp_path / "run").exists()


GOOD = {"problem": "What is 1+1?", "answer": "2"}
DATA = {  # file -> content, and what is said of it
    "empty.jsonl": (b"", "has no rows"),
    "broken.parquet": (b"PAR1 no more", "not a readable parquet file"),
    "broken.json": (b'[{"problem"', "not JSON"),
    "column.jsonl": ({"text": "q"}, "line 1: no question; found the columns text, expected one of problem, question"),
    "no_answer.jsonl": ({"problem": "q"}, "line 1: no answer; found the columns problem, expected reward_model."),
    "empty_answer.jsonl": (GOOD | {"answer": " "}, "line 1: answer is empty"),
    "nan.jsonl": (GOOD | {"answer": "NaN"}, "line 1: answer 'NaN' is no answer"),
    "object.jsonl": (GOOD | {"answer": {"a": 1}}, "line 1: answer is a dict, expected a text"),
    "long.jsonl": (GOOD | {"answer": "1" * 30_000}, "answer has 30,000 characters, the verifier reads 20,000"),
    "steers.jsonl": ({"\x1b[2J\ud800": 1}, r"found the columns \x1b[2J\ud800, expected"),
    "table.csv": (b"problem,answer\n", "unknown kind of file '.csv'"),
}


@pytest.mark.parametrize("name", DATA)
def test_datasets_without_a_usable_row(name, tmp_path):
    content, words = DATA[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for script, output in (("train", "workdir"), ("difficulty", "output")):
        said = refusal(script, TINY, f"--{output}={tmp_path}/run", f"--config.data.train={path}")
        assert f"{path}: " in said
        assert words in said
    assert words in refusal("evaluate", TINY, f"--output={tmp_path}/run", f"--benchmarks={path}")
    assert words in refusal("prepare_data", f"--sources={path}", f"--output={tmp_path}/run")


def test_other_inputs(tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}))
    (tmp_path / "long.jsonl").write_text(json.dumps(GOOD | {"problem": "1 " * 200}))
    (tmp_path / "scores.json").write_text('{"scores": {"aime24": {"samples": 3}}}')
    run = f"--workdir={tmp_path}/run"
    output = f"--output={tmp_path}/run"
    for script, flags, words in [
        ("sft", [run, f"--config.sft.data={tmp_path}/chats.jsonl"], "line 1: the last message is the user's"),
        ("sft", [run, "--config.sft.data="], "config.sft.data: empty; name a parquet or jsonl file"),
        ("difficulty", [output, f"--config.data.train={tmp_path}/long.jsonl"], "every prompt has over config.data."),
        ("temperature", [output, "--temperatures=1,nan"], "config.evaluation.temperature: expected numbers from 0"),
        ("temperature", [output, "--temperatures=hot"], "--temperatures: could not convert string to float: 'hot'"),
        ("evaluate", [output, "--benchmarks=aime99"], "aime99: no such benchmark; expected aime24, aime25, amc23"),
        ("evaluate", [output, f"--compare={tmp_path}/scores.json"], "scores.json: not the scores of an evaluation"),
        ("evaluate", [output, f"--responses={tmp_path}/long.jsonl"], "line 1: no responses; found the columns"),
        ("evaluate", [output, "--model=a", "--compare=b"], "give one of --model, --responses and --compare"),
    ]:
        assert words in refusal(script, TINY, *flags)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:", "invalid syntax"),
        ("import nothing_there", "No module named 'nothing_there'"),
        ("def get_config(): return {'seed': 0}", "missing; start from configs/base.py"),
        (
            "from configs import tiny\ndef get_config():\n c = tiny.get_config()\n c.extra = 1\n return c",
            "config.extra: no",
        ),
        (
            "from configs import tiny\ndef get_config():\n c = tiny.get_config()\n del c.seed\n return c",
            "seed: missing",
        ),
    ],
)
def test_config_files(text, words, tmp_path):
    (tmp_path / "config.py").write_text(text)
    assert words in refusal("train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run")


def test_what_is_right_is_not_refused(tmp_path):
    (tmp_path / "problems.jsonl").write_text(json.dumps(GOOD | {"problem": "Start with 3, first +4. What is it?"}))
    flags = ["--config.rollout.prompts=1", f"--config.data.train={tmp_path}/problems.jsonl"]
    assert run_script("train", TINY, f"--workdir={tmp_path}/run", *flags).code is None
    assert run_script("sft", TINY, f"--workdir={tmp_path}/sft", "--config.sft.steps=2").code is None


def test_a_dataset_cannot_write_markup_into_tables_and_cards(tmp_path):
    name = "[/bold]<script>|\n| x"
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    scores = {name: {"problems": 1, "samples": 1, "avg@1": interval, "pass@1": interval, "maj@1": interval}}
    scores[name] |= {"length": None, "no_box": 0.0, "cut_off": None, "accuracies": {}}
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores}))
    done = run_script("evaluate", f"--output={tmp_path}/run", f"--compare={tmp_path}/scores.json")
    assert done.code == 0
    assert "[/bold]<script>|" in done.out
    assert report.table(scores, name).row_count == 1
    pd.DataFrame([GOOD | {"data_source": name}]).to_parquet(tmp_path / "rows.parquet")
    assert run_script("prepare_data", f"--sources={tmp_path}/rows.parquet", f"--output={tmp_path}/data").code == 0
    assert "| [/bold]&lt;script&gt;&#124; &#124; x | 1 |" in (tmp_path / "data" / "README.md").read_text()
