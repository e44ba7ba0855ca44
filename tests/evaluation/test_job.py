"""The job writes what it promises and goes on where it stopped; the script says in one line what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from configs import tiny
from polaris_jax import config as configs
from polaris_jax.data.arithmetic import build_tokenizer
from polaris_jax.data.problems import SUFFIX
from polaris_jax.errors import UserError
from polaris_jax.evaluation import job, report
from polaris_jax.evaluation.records import read_responses
from polaris_jax.sampler import with_think_rule
from polaris_jax.supervision import showing
from polaris_jax.types import Rollout

ROOT = Path(__file__).resolve().parents[2]
SYNTHETIC = ROOT / "tests" / "evaluation" / "responses.parquet"


class Parrot:
    """An engine whose every response is `text`; `sampled` counts them over all engines."""

    sampled = 0
    text = "<think> 50.</think>\nThe answer is \\boxed{50}<|im_end|>"

    def __init__(self, model, mesh, config, **_):
        assert config.max_response_tokens == 32

    def state(self):
        return {}

    def generate(self, params, prompts, samples, sampling, seed):
        tokens = np.asarray(build_tokenizer(SUFFIX)(self.text, add_special_tokens=False)["input_ids"], np.int32)
        assert (sampling.temperature, sampling.stop_ids) == (0.5, (tokens[-1],))
        for prompt in prompts:
            for sample in range(samples):
                Parrot.sampled += 1
                yield Rollout(prompt.problem.id, sample, prompt.tokens, tokens, np.zeros(len(tokens)), "stop")


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(job, "RolloutEngine", Parrot)
    monkeypatch.setattr(job, "load_model", lambda *arguments: (None, None))
    monkeypatch.setattr(Parrot, "sampled", 0)
    changes = {"max_problems": 5, "samples": 2, "temperature": 0.5, "max_response_tokens": 32}
    return configs.override(tiny.get_config(), {f"evaluation.{key}": value for key, value in changes.items()})


def test_output_holds_scores_and_responses_and_is_gone_on_with(config, tmp_path):
    result = job.run(config, tmp_path / "out")
    assert Parrot.sampled == 10
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == result.scores
    assert written["model"] == "tiny"
    assert written["settings"]["temperature"] == 0.5
    kept = read_responses(tmp_path / "out" / "responses.parquet", suffix=SUFFIX)
    assert [row.problem for row in kept] == result.problems
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "lock",
        "responses.jsonl",
        "responses.parquet",
        "scores.json",
    }
    assert job.run(config, tmp_path / "out") == result
    assert Parrot.sampled == 10
    more = configs.override(config, {"evaluation.max_problems": 7})
    assert job.run(more, tmp_path / "out").scores["arithmetic"]["problems"] == 7
    assert Parrot.sampled == 14
    other = configs.override(config, {"evaluation.top_k": 5})
    with pytest.raises(UserError, match="holds an evaluation with top_k 0, this one has 5"):
        job.run(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.samples": 0}, "config.evaluation.samples: expected at least 1, found 0"),
        ({"evaluation.benchmarks": ("aime",)}, "aime: no such benchmark; expected aime24"),
        ({"evaluation.benchmarks": ()}, "config.evaluation.benchmarks: empty"),
    ],
)
def test_mistakes_leave_nothing_behind(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        job.run(configs.override(config, changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_benchmark_may_have_its_own_number_of_samples(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "Start with 37. What is the result?", "answer": "50"}\n')
    seen = []
    changed = configs.override(config, {"evaluation.benchmarks": ("arithmetic", f"{path}:3")})
    with showing(lambda *heartbeat: seen.append(heartbeat)):
        scores = job.run(changed, tmp_path / "out").scores
    assert scores["arithmetic"]["samples"] == 2
    assert scores[str(path)]["avg@3"]["mean"] == 1
    assert Parrot.sampled == 13
    assert {heartbeat[1:] for heartbeat in seen} >= {(10, 10), (3, 3)}


def test_long_questions_of_a_benchmark_are_asked_too(config, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"problem": "What is " * 500, "answer": "50"}))
    changed = configs.override(config, {"evaluation.benchmarks": (str(path),)})
    assert job.run(changed, tmp_path / "out").scores[str(path)]["problems"] == 1


def accuracy(config, output):
    (scores,) = job.run(config, output).scores.values()
    return scores["avg@2"]["mean"]


def test_stored_responses_are_judged_by_the_answers_and_rules_of_today(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    config = configs.override(config, {"evaluation.benchmarks": (str(path),)})
    for answer, expected in (("50", 1), ("7", 0), ("50", 1)):
        path.write_text(json.dumps({"problem": "Start with 37. What is the result?", "answer": answer}))
        assert accuracy(config, tmp_path / "out") == expected
    assert Parrot.sampled == 2


def test_another_think_rule_gives_other_verdicts_and_the_warning_names_it(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Parrot, "text", "The answer is \\boxed{50}<|im_end|>")
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"problem": "Start with 37. What is the result?", "answer": "50"}))
    config = configs.override(config, {"evaluation.benchmarks": (str(path),)})
    assert accuracy(config, tmp_path / "out") == 0  # the demo's chat template speaks of thoughts
    assert "no response has </think>" in caplog.text
    assert "--config.reward.require_think=no" in caplog.text
    caplog.clear()
    assert accuracy(configs.override(config, {"reward.require_think": "no"}), tmp_path / "out") == 1
    assert not caplog.text
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["settings"]["require_think"] == "no"
    assert accuracy(configs.override(config, {"reward.require_think": "yes"}), tmp_path / "out") == 0
    assert Parrot.sampled == 2


@pytest.mark.parametrize(("template", "rule"), [("{{ '<think>' }}", "yes"), ("{{ messages }}", "no")])
def test_the_think_rule_follows_the_chat_template_unless_it_is_given(config, template, rule, capsys):
    tokenizer = build_tokenizer(SUFFIX)
    tokenizer.chat_template = template
    assert with_think_rule(config, tokenizer).reward.require_think == rule
    assert "config.reward.require_think" in capsys.readouterr().out
    for given in ("yes", "no"):
        config = configs.override(config, {"reward.require_think": given})
        assert with_think_rule(config, tokenizer).reward.require_think == given


def test_responses_of_others_that_do_not_think_are_read_from_their_start(tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"problem": "q", "answer": "7", "responses": ["\\boxed{7}", "7"]}))
    result, _ = job.judge_file(path, tiny.get_config(), tmp_path / "out")
    assert result.scores["theirs"]["reasons"] == {"equal": 0.5, "no_box": 0.5}
    assert list(report.explained(result.scores)) == ["theirs: 0.0% no </think>, 50.0% no box after the thoughts"]


def test_more_than_half_cut_off_is_said_with_the_key():
    scores = {"a": {"reasons": {}, "cut_off": 0.51}, "b": {"reasons": {}, "cut_off": None}}
    (line,) = report.warnings(scores, 32)
    assert "a: 51% of the responses were truncated at config.evaluation.max_response_tokens=32" in line


def test_the_table_is_whole_in_80_columns():
    interval = {"mean": 0.655, "low": 0.6, "high": 1.0}
    scores = {"problems": 1234, "samples": 32, "avg@32": interval, "pass@32": interval, "maj@32": interval}
    scores |= {"length": {"mean": 23456.0}, "no_box": 1.0, "cut_off": 1.0}
    console = Console(width=80, record=True)
    console.print(report.table({"aime24": scores, "/some/where/problems_of_mine.jsonl": scores}, "runs/mine"))
    text = console.export_text()
    assert "…" not in text
    assert text.count("60.0-100.0    65.5   65.5  23,456   100.0  100.0") == 2


def test_benchmarks_by_name_and_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "q1", "answer": "1"}\n{"problem": "q2", "answer": "2"}\n')
    problems = job.load_benchmarks(("aime24", "arithmetic", str(path)), suffix=SUFFIX, most=1)
    assert [problem.source for problem in problems] == ["aime24", "arithmetic", str(path)]


def test_comparison_lays_runs_side_by_side(tmp_path):
    result, skipped = job.judge_file(SYNTHETIC, tiny.get_config(), tmp_path / "a")
    assert skipped == []
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    scores["scores"]["other"] = scores["scores"]["synthetic"] | {"length": None}
    first, second, *others = scores["scores"]["synthetic"]["accuracies"]
    changed = {first: 1.0, second: 0.5} | {name: scores["scores"]["synthetic"]["accuracies"][name] for name in others}
    scores["scores"]["synthetic"] = scores["scores"]["synthetic"] | {"accuracies": changed}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scores.json").write_text(json.dumps(scores))
    frame = report.compare(report.load_runs([tmp_path / "a", tmp_path / "b"]))
    assert frame[["run", "benchmark", "mean"]].to_numpy().tolist() == [
        ["a", "synthetic", 0.375],
        ["b", "synthetic", 0.375],
        ["b", "other", 0.375],
    ]
    # From 0.5 to 1 and from 0.25 to 0.5, the other two as they were: differences 0.5, 0.25, 0, 0.
    gains = frame[["gain", "gain_low", "gain_high"]].to_numpy()
    margin = 1.96 * np.std([0.5, 0.25, 0, 0], ddof=1) / 2
    np.testing.assert_allclose(gains, [[np.nan] * 3, [0.1875, 0.1875 - margin, 0.1875 + margin], [np.nan] * 3])
    texts = [text.get_text() for text in report.comparison_picture(frame).axes[0].texts]
    assert texts == ["37.5", "37.5\n+18.8 ± 23.5", "37.5"]
    report.save_comparison(frame, tmp_path / "c")
    assert (tmp_path / "c" / "comparison.png").stat().st_size > 1000
    pd.testing.assert_frame_equal(pd.read_json(tmp_path / "c" / "comparison.json"), frame, check_dtype=False)
    console = Console(width=80, record=True)
    console.print(report.table(result.scores))
    console.print(report.comparison_table(frame))
    text = console.export_text()
    assert "37.5  5.9-69.1    75.0   50.0      35    31.2   25.0" in text
    assert "37.5 (5.9 to 69.1)" in text
    assert "+18.8 (-4.7 to +42.2)" in text


def test_what_is_no_evaluation_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match=r"scores\.json: not the scores of an evaluation|nowhere: not the scores"):
        report.load_runs([tmp_path])


def script(*arguments):
    command = [sys.executable, "experiments/evaluate.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_script_scores_the_committed_responses_as_by_hand(tmp_path):
    """The four problems of responses.parquet, four responses each, as their boxes read.

    1. answer 2:             2, 2.0, 3, no box                       lengths 10, 20, 30, 40
    2. answer 1/2:           1/3, 1/3 (as a fraction), 1/2, 0.3     lengths 10 each
    3. answer 7:             7 four times, but cut off in thought    lengths 100 each
    4. answer 0.01 or 0.02:  0.01, 0.02, 0.02, 0.03                  lengths 5 each

    95% intervals are mean +- 1.96 s / sqrt(4), s^2 the sum of squared deviations over 3, cut to [0, 1] or from 0.
    """
    done = script(f"--responses={SYNTHETIC}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "synthetic  4  4   37.5" in done.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["synthetic"]
    by_hand = {
        # 1/2, 1/4, 0, 3/4: squares 0.0156 + 0.0156 + 0.1406 + 0.1406 = 0.3125, s = 0.32275, margin 0.31629
        "avg@4": (0.375, 0.05871, 0.69129),
        "pass@1": (0.375, 0.05871, 0.69129),
        # of 6 pairs 5, 3, 0, 6 hold a right one: mean 14/24; squares 7/12, s = 0.44096, margin 0.43214, cut at 1
        "pass@2": (0.58333, 0.15119, 1.0),
        # 1, 1, 0, 1: squares 3/16 + 9/16 = 3/4, s = 0.5, margin 0.49, cut at 1
        "pass@4": (0.75, 0.26, 1.0),
        # most say 2 (right), 1/3 (wrong), nothing, 0.02 (right); 1, 0, 0, 1: s = 0.57735, margin 0.56580, cut at both
        "maj@4": (0.5, 0.0, 1.0),
        # 25, 10, 100, 5: squares 100 + 625 + 4225 + 900 = 5850, s = 44.1588, margin 43.27563, cut at 0
        "length": (35.0, 0.0, 78.27563),
    }
    for name, values in by_hand.items():
        assert tuple(scores[name].values()) == pytest.approx(values, abs=1e-5), name
    # Without box: one of the first problem, and the four that never ended their thought; those were cut off.
    assert (scores["problems"], scores["samples"]) == (4, 4)
    assert (scores["no_box"], scores["cut_off"]) == (5 / 16, 4 / 16)


def test_script_says_in_one_line_what_is_wrong(tmp_path):
    done = script("--model=/nowhere/model", f"--output={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: /nowhere/model")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_model_is_evaluated_twice_to_the_same_scores(tmp_path):
    changes = {"evaluation.max_problems": 4, "evaluation.samples": 2, "evaluation.max_response_tokens": 32}
    config = configs.override(tiny.get_config(), changes)
    first, second = (job.run(config, tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert len(first.records) == 8
