"""An evaluation scores what the engine gives, whatever the order, and resumes where it stopped."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from polaris_jax.data.arithmetic import build_tokenizer, problems
from polaris_jax.data.problems import SUFFIX, benchmark, load_problems
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.evaluation.evaluate import evaluate, judge
from polaris_jax.evaluation.records import Record, read_responses, write_parquet
from polaris_jax.evaluation.votes import answer_groups
from polaris_jax.files import Journal
from polaris_jax.rewards import VerifierPool
from polaris_jax.sampler import Sampler
from polaris_jax.supervision import showing
from polaris_jax.types import Problem, Rollout

SYNTHETIC = Path(__file__).parent / "responses.parquet"
TOKENIZER = build_tokenizer(SUFFIX)


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=1, timeout_s=10) as pool:
        yield pool


class FakeEngine:
    """Answers right in the first `right` samples of each problem, else 5; in a scrambled order, as an engine would."""

    def __init__(self, problems, right=1, stop_after=None):
        self.answers = {problem.id: problem.answers[0] for problem in problems}
        self.right, self.stop_after, self.sampled = right, stop_after, []

    def generate(self, params, prompts, samples, sampling, seed):
        addresses = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        for count, place in enumerate(np.random.default_rng(seed).permutation(len(addresses))):
            if count == self.stop_after:
                raise KeyboardInterrupt
            prompt, sample = addresses[place]
            self.sampled.append((prompt.problem.id, sample))
            answer = self.answers[prompt.problem.id] if sample < self.right else "5"
            text = f"<think> {answer}.</think>\nThe answer is \\boxed{{{answer}}}<|im_end|>"
            tokens = np.asarray(TOKENIZER(text, add_special_tokens=False)["input_ids"], np.int32)
            logprobs = np.zeros(len(tokens), np.float32)
            yield Rollout(prompt.problem.id, sample, prompt.tokens, tokens, logprobs, "stop")


def run(engine, problems, pool, **options):
    prompts = make_prompts(problems, TOKENIZER)
    return evaluate(Sampler(engine, TOKENIZER, pool), {}, prompts, 4, None, 0, **options)


PROBLEMS = [problem for problem in problems("test", 12, SUFFIX) if problem.answers != ("5",)][:8]


def test_scores_of_the_committed_responses_equal_the_values_worked_out_by_hand(pool):
    # Right: 2, 1, 0 and 3 of 4. Of the pairs 5, 3, 0 and 6 of 6 hold a right one. Majorities: 2 and 2.0 (right), 1/3
    # twice (wrong), none, 0.02 twice (right). Lengths 25, 10, 100 and 5. One has no box, four are cut off thinking.
    scores = judge(read_responses(SYNTHETIC, suffix=SUFFIX), pool).scores["synthetic"]
    assert (scores["problems"], scores["samples"]) == (4, 4)
    means = {name: value["mean"] for name, value in scores.items() if isinstance(value, dict) and "mean" in value}
    expected = {"avg@4": 0.375, "pass@1": 0.375, "pass@2": 7 / 12, "pass@4": 0.75, "maj@4": 0.5, "length": 35}
    assert means == pytest.approx(expected)
    # Unbiased deviation of (0.5, 0.25, 0, 0.75) is sqrt(0.3125 / 3).
    margin = 1.96 * (0.3125 / 3) ** 0.5 / 2
    assert scores["avg@4"]["low"] == pytest.approx(0.375 - margin)
    assert scores["avg@4"]["high"] == pytest.approx(0.375 + margin)
    assert (scores["no_box"], scores["cut_off"]) == (5 / 16, 4 / 16)
    assert scores["reasons"] == {"equal": 6 / 16, "no_box": 1 / 16, "no_think_end": 4 / 16, "unequal": 5 / 16}
    json.dumps(scores, allow_nan=False)


def test_an_engine_is_scored_whatever_the_order_of_its_responses(pool):
    result = run(FakeEngine(PROBLEMS, right=3), PROBLEMS, pool)
    scores = result.scores["arithmetic"]
    assert scores["avg@4"] == {"mean": 0.75, "low": 0.75, "high": 0.75}
    assert scores["maj@4"]["mean"] == scores["pass@4"]["mean"] == 1
    assert scores["cut_off"] == scores["no_box"] == 0
    assert len(result.records) == 4 * len(PROBLEMS)
    for record in result.records:
        assert record.correct == (record.sample < 3)
        assert record.response.endswith("}")  # the token that stopped it is not part of the text
        assert record.length == len(TOKENIZER(record.response)["input_ids"]) + 1


def test_progress_counts_every_response_once(pool):
    seen = []
    with showing(lambda *heartbeat: seen.append(heartbeat)):
        run(FakeEngine(PROBLEMS), PROBLEMS, pool)
    assert seen == [("responses judged", done, 32) for done in range(33)]


def test_a_problem_of_two_benchmarks_is_sampled_once_and_counts_in_both(pool):
    twin = Problem(PROBLEMS[0].id, PROBLEMS[0].question, ("5",), "other")
    engine = FakeEngine(PROBLEMS, right=1)
    scores = run(engine, [*PROBLEMS, twin], pool).scores
    assert len(engine.sampled) == len(set(engine.sampled)) == 4 * len(PROBLEMS)
    assert scores["arithmetic"]["avg@4"]["mean"] == 0.25
    assert scores["other"]["avg@4"]["mean"] == 0.75


@pytest.mark.parametrize("stop_after", [0, 1, 9, 31])
def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path, pool, stop_after):
    unbroken = run(FakeEngine(PROBLEMS), PROBLEMS, pool)
    path, settings = tmp_path / "deep" / "responses.jsonl", {"seed": 0, "stop": (1, 2)}
    killed = FakeEngine(PROBLEMS, stop_after=stop_after)
    with Journal(path, settings, Record) as journal, pytest.raises(KeyboardInterrupt):
        run(killed, PROBLEMS, pool, journal=journal)
    with path.open("ab") if path.exists() else nullcontext() as file:
        if file:
            file.write(b'{"benchmark": "half a li')
    again = FakeEngine(PROBLEMS)
    with Journal(path, settings, Record) as journal:
        kept = len(journal.records)
        assert run(again, PROBLEMS, pool, journal=journal) == unbroken
    assert len(again.sampled) <= 32
    with Journal(path, settings, Record) as journal:
        assert kept <= stop_after
        assert len(journal.records) == 32
        done = FakeEngine(PROBLEMS)
        assert run(done, PROBLEMS, pool, journal=journal) == unbroken
        assert done.sampled == []


def test_processes_write_journals_of_their_own_and_read_all(tmp_path, pool, monkeypatch):
    for process in (0, 1):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        with Journal(tmp_path / "r.jsonl", {}, Record) as journal:
            assert len(journal.records) == 16 * process
            run(FakeEngine(PROBLEMS[4 * process :][:4]), PROBLEMS[4 * process :][:4], pool, journal=journal)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.1.jsonl", "r.jsonl"]
    monkeypatch.undo()
    with Journal(tmp_path / "r.jsonl", {}, Record) as journal:
        done = FakeEngine(PROBLEMS)
        assert len(run(done, PROBLEMS, pool, journal=journal).records) == 32
        assert done.sampled == []


def test_kept_responses_are_read_and_judged_again_to_the_same_scores(tmp_path, pool):
    result = run(FakeEngine(PROBLEMS, right=2), PROBLEMS, pool)
    write_parquet(tmp_path / "x.parquet", result.problems, result.records)
    read = read_responses(tmp_path / "x.parquet", suffix=SUFFIX)
    assert [row.problem for row in read] == load_problems(tmp_path / "x.parquet") == PROBLEMS
    again = judge(read, pool)
    assert again.scores == result.scores
    assert {"data_source", "prompt", "ability", "reward_model", "extra_info"} < set(
        pd.read_parquet(tmp_path / "x.parquet")
    )


def test_responses_of_others_are_joined_by_question_and_find_their_answer(tmp_path, pool):
    problem = benchmark("aime25")[0]  # answer 70
    bare = problem.question.removesuffix(SUFFIX)
    chat = f"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": problem.question}]
    (tmp_path / "theirs.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                {"prompts": bare, "responses": ["</think>\\boxed{70}", "</think>\\boxed{7}"]},
                {"prompt": chat, "response": "</think>\\boxed{70}"},
                {"prompt": messages, "output": "no box"},
                {"prompt": "unknown?", "response": "x"},
                {"prompt": bare, "responses": []},
                {"prompt": bare, "responses": ["a"], "lengths": [1, 2]},
                {"prompt": bare},
            ]
        )
    )
    skipped = []
    (row,) = read_responses(tmp_path / "theirs.jsonl", benchmark("aime25"), suffix=SUFFIX, skipped=skipped)
    assert row.problem == problem
    assert len(row.responses) == 4
    scores = judge([row], pool).scores["aime25"]
    assert scores["avg@4"] == {"mean": 0.5, "low": None, "high": None}
    assert scores["length"] is scores["cut_off"] is None
    assert [line.split(": ", 1)[1][:22] for line in skipped] == [
        "no answer; found the c",
        "responses is empty",
        "lengths has 2 entries ",
        "no responses; found th",
    ]


def test_uneven_numbers_of_responses_are_refused(tmp_path, pool):
    rows = [{"prompt": q, "answer": "1", "responses": ["x"] * n} for q, n in (("a", 2), ("b", 3))]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="x: problems have 2 to 3 responses"):
        judge(read_responses(tmp_path / "x.jsonl", suffix=SUFFIX), pool)


def test_answers_are_grouped_by_equality(pool):
    problem = Problem("p", "q", ("1/2", "x"), "s")
    given = [r"\frac12", "0.5", "x", "1/3", r"$\frac{1}{3}$", "2", None, "\\frac{", "\\frac{", "1 / 3"]
    rows = [judge_one(problem, answer, sample, pool) for sample, answer in enumerate(given)]
    assert answer_groups([problem], [rows], pool).tolist() == [[0, 0, 2, 3, 3, 5, -1, -1, -1, 3]]


def test_white_space_between_digits_makes_another_answer(pool):
    problem = Problem("p", "q", ("385",), "s")
    rows = [
        judge_one(problem, answer, sample, pool) for sample, answer in enumerate(("385", "3 8 5", " 3  8 5", "$385$"))
    ]
    assert answer_groups([problem], [rows], pool).tolist() == [[0, 1, 1, 0]]


def judge_one(problem, answer, sample, pool):
    response = "</think>" if answer is None else f"</think>\\boxed{{{answer}}}"
    verdict = pool.submit(response, problem.answers).result()
    return Record("s", "p", sample, response, None, None, verdict.correct, str(verdict.reason))
