"""What the report holds, read from its json; `test_browser.py` looks at the page itself."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax import report
from polaris_jax.errors import UserError
from polaris_jax.report import evaluations, parts, rollouts
from polaris_jax.training import group_log
from tests.report.workdirs import HOSTILE, byte_tokenizer, make_evaluation, make_run

PAGE = ["html", "head", "meta", "meta", "meta", "title", "link", "style", "body", "header", "h1", "nav", "main"]
PAGE += ["noscript"]


class Scripts(HTMLParser):
    """The script elements of a page, as a browser finds them, and the names of all others."""

    def __init__(self, text):
        super().__init__()
        self.found, self.others, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._open = tag == "script"
        self.found += [[dict(attributes), ""]] if self._open else []
        self.others += [] if self._open else [tag]

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, text):
        if self._open:
            self.found[-1][1] += text


def data_of(path):
    (attributes, text), _ = Scripts(path.read_text("utf-8")).found
    assert attributes["type"] == "application/json"
    return json.loads(text)


def text_of(part):
    return "".join(part["pieces"])


def test_it_holds_curves_stages_config_rollouts_and_evaluations(tmp_path):
    workdir = make_run(tmp_path / "run" / "train", **{"rollout.samples": 4})
    make_evaluation(tmp_path / "run" / "evaluation", [["ab", "a"], ["a", "a"]])
    path = report.write([tmp_path / "run"])
    data = data_of(path)
    assert path == tmp_path / "run" / "report.html"
    (run,) = data["runs"]
    assert (run["steps"], run["last"], run["limit"]) == (list(range(1, 11)), 10, 256)
    assert run["stages"] == [{"name": "short", "step": 1}, {"name": "<i>long</i>", "step": 6}]
    assert run["metrics"]["loss"] == [0.1, 0.1, None] + [0.1] * 7
    rows = {row["key"]: row for row in data["config"]}
    assert rows["rollout.samples"] == {"key": "rollout.samples", "default": "8", "values": ["4"]}
    assert rows["seed"]["values"] == [rows["seed"]["default"]]
    assert len(data["groups"]) == 20
    group = data["groups"][-2]
    assert (group["step"], group["stage"], group["answers"]) == (10, "<i>long</i>", ["10"])
    assert group["question"] == "What is 10 + 0?"
    sample = group["samples"][1]
    assert (text_of(sample["thoughts"]), text_of(sample["final"])) == ("<think>b</think>", "8<|end|>")
    assert (sample["reward"], sample["reason"]) == (1.0, "equal")
    logged = group_log.load(workdir, 10)[0]
    values = {"logprobs": logged.group.rollouts[1].logprobs, "gaps": logged.gaps[1], "entropies": logged.entropies[1]}
    for name, expected in values.items():
        assert unpacked(sample["thoughts"][name]) + unpacked(sample["final"][name]) == pytest.approx(expected, abs=1e-3)
    scored = data["evaluations"]
    assert scored["runs"][0]["benchmarks"]["sums"]["average"]["mean"] == 0.25
    assert [problem["runs"][0]["right"] for problem in scored["problems"]] == ["10", "00"]


def unpacked(text):
    return (np.frombuffer(base64.b64decode(text), "<i2") / parts.NATS).tolist()


def test_groups_are_read_as_they_were_kept(tmp_path):
    make_run(tmp_path / "run", steps=1, texts=lambda step: [*HOSTILE[:2], "½", ""])
    (first, _) = group_log.load(tmp_path / "run", 1)
    tokenizer = byte_tokenizer()
    assert [tokenizer.decode(rollout.tokens[:-1]) for rollout in first.group.rollouts] == [*HOSTILE[:2], "½", ""]
    assert first.group.rewards.tolist() == [1, 1, 0, 0]
    assert [len(gap) for gap in first.gaps] == [len(rollout.tokens) for rollout in first.group.rollouts]


def test_a_full_directory_keeps_steps_spread_over_the_run(tmp_path, monkeypatch):
    make_run(tmp_path / "a", steps=1)
    size = (tmp_path / "a" / "groups" / "1.npz").stat().st_size
    monkeypatch.setattr(group_log, "MOST_BYTES", int(4.9 * size))
    make_run(tmp_path / "b", steps=16)
    assert group_log.logged_steps(tmp_path / "b") == [4, 8, 12, 16]


def test_steps_behind_the_newest_checkpoint_and_damaged_files_are_told_apart(tmp_path):
    workdir = make_run(tmp_path / "run", steps=4)
    text = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(text[:3]))
    (workdir / "groups" / "2.npz").write_bytes(b"PK\x03\x04 not a zip")
    data = data_of(report.write([workdir]))
    assert {group["step"] for group in data["groups"]} == {1, 3}
    assert any("2.npz: expected groups of a run" in note for note in data["notes"])


def test_hostile_texts_make_no_element_and_are_there_whole(tmp_path):
    texts = [*HOSTILE, "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace")]
    make_run(tmp_path / "run", steps=1, texts=lambda step: texts)
    long = "<script>" + "x" * 2**20 + "</script>"
    make_evaluation(tmp_path / "run" / "evaluation", [[text] for text in HOSTILE] + [[long]])
    path = report.write([tmp_path / "run"])
    page = Scripts(path.read_text("utf-8"))
    assert [attributes for attributes, _ in page.found] == [{"type": "application/json", "id": "data"}, {}]
    assert page.others == PAGE
    data = data_of(path)
    assert [text_of(s["final"]).removesuffix("<|end|>") for s in data["groups"][0]["samples"]] == texts
    responses = [p["runs"][0]["responses"][0] for p in data["evaluations"]["problems"]]
    assert [text_of(one["final"]) for one in responses] == [*HOSTILE, long]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_pieces_make_the_text(text):
    tokenizer = byte_tokenizer()
    text = text.encode("utf-8", "replace").decode()
    tokens = np.asarray(tokenizer(text)["input_ids"], np.int32)
    assert "".join(rollouts.pieces(tokens, tokenizer)) == text
    assert len(rollouts.pieces(tokens, tokenizer)) == len(tokens)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "</th", "ink>", "</think>", "x</think>y", ""])))
def test_thoughts_end_with_the_last_tag(pieces):
    text, end = "".join(pieces), parts.thoughts_end(pieces)
    head, tail = "".join(pieces[:end]), "".join(pieces[end:])
    assert head + tail == text
    assert ("</think>" in head) == ("</think>" in text)
    assert "</think>" not in tail


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_every_beginning_of_the_order_is_spread(count):
    order = parts.spread(count)
    assert sorted(order) == list(range(count))
    for n in range(2, count):
        gaps = np.diff([-1, *sorted(order[:n])])
        assert gaps.max() <= 4 * count / n


def test_the_budget_holds_and_long_responses_lose_their_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "BUDGET", 200_000)
    monkeypatch.setattr(rollouts, "CAPS", (2**20, 100))
    monkeypatch.setattr(evaluations, "BUDGET", 50_000)
    monkeypatch.setattr(evaluations, "CAPS", (2**20, 100))
    make_run(tmp_path / "run", texts=lambda step: [f"<think>{'<' * 5000}</think>{step}"] * 4, limit=8192)
    make_evaluation(tmp_path / "run" / "evaluation", [["<" * 3000 + str(i)] for i in range(200)])
    path = report.write([tmp_path / "run"])
    data = data_of(path)
    assert path.stat().st_size < 200_000 + 50_000 + 100_000
    steps = sorted({group["step"] for group in data["groups"]})
    assert len(steps) >= 4
    assert steps[-1] == 10
    thoughts = data["groups"][0]["samples"][0]["thoughts"]
    assert thoughts["left_out"] == len("<think></think>") + 5000 - 100
    assert text_of(thoughts).startswith("<think><<<")
    assert text_of(thoughts).endswith("<</think>")
    assert any(re.match(r"Groups of \d+ of 10 logged steps", note) for note in data["notes"]) == (len(steps) < 10)
    scored = data["evaluations"]
    assert len(scored["problems"]) == 200
    kept = [problem for problem in scored["problems"] if problem["runs"][0]["responses"]]
    assert 0 < len(kept) == 200 - scored["without_texts"] < 200


def test_runs_are_compared_under_short_names(tmp_path):
    make_run(tmp_path / "a" / "train")
    make_run(tmp_path / "b" / "train", steps=3, **{"seed": 5})
    make_evaluation(tmp_path / "a" / "evaluation", [["ab", "a"], ["a", "a"]])
    make_evaluation(tmp_path / "b" / "evaluation", [["ab", "ab"], ["a", "a"], ["a", "ab"]])
    data = data_of(report.write([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html"))
    assert [run["name"] for run in data["runs"]] == ["a/train", "b/train"]
    assert next(row for row in data["config"] if row["key"] == "seed")["values"] == ["0", "5"]
    assert [run["name"] for run in data["evaluations"]["runs"]] == ["a/evaluation", "b/evaluation"]
    right = [[run and run["right"] for run in problem["runs"]] for problem in data["evaluations"]["problems"]]
    assert right == [["10", "11"], ["00", "00"], [None, "01"]]


def test_a_long_run_is_shown_by_means(tmp_path):
    workdir = make_run(tmp_path / "run", steps=1)
    rows = [{"step": step, "reward": step % 2} for step in range(1, 5001)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = data_of(report.write([workdir]))["runs"]
    assert len(run["steps"]) <= 600
    assert np.mean(run["metrics"]["reward"]) == pytest.approx(0.5, abs=0.01)
    assert run["last"] == 5000


def test_nothing_to_show_is_told(tmp_path):
    with pytest.raises(UserError, match="neither metrics"):
        report.write([tmp_path])
    with pytest.raises(UserError, match="no such directory"):
        report.write([tmp_path / "nowhere"])
