"""Problems that are there twice, that a benchmark asks too, or that no response can be right on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from polaris_jax.data.problems import bare_question
from polaris_jax.rewards.answers import judge_integers
from polaris_jax.rewards.pool import VerifierPool
from polaris_jax.rewards.verdict import Reason
from polaris_jax.types import Problem

# What does not change a question: white space, dollar signs, LaTeX's thin spaces, sized brackets and display style.
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ()\[\]]|[\s$]|~")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Repeat:
    """`problem` asks what `first`, which is kept, has asked; `same_answer`: they share a ground truth."""

    problem: Problem
    first: Problem
    same_answer: bool


@dataclass(frozen=True)
class Overlap:
    """`problem` shares words with the question `asked` of a benchmark.

    shared: the first run of words that they share. share: of the benchmark question's n-grams, how many are found.
    """

    problem: Problem
    asked: Problem
    shared: str
    share: float


# A ground truth against itself: what tells of the text and not of the machine's load.
_NEVER_RIGHT = (Reason.UNPARSABLE, Reason.UNEQUAL, Reason.NO_BOX)


def verifiable(problems: Sequence[Problem]) -> tuple[list[Problem], list[str]]:
    """Keeps the problems that can be answered right, and says of each other one why not.

    A problem is left out where none of its ground truths, boxed, is judged equal to itself: not parsable and without a
    word in it, an undefined value, unbalanced braces, or one that its own scorer does not take.
    """
    plain = {p.id for p in problems if p.kind == "math" and all(judge_integers(a, [a]) for a in p.answers)}
    asked = [(p, a) for p in problems if p.id not in plain for a in p.answers]
    if not asked:
        return list(problems), []
    with VerifierPool(require_think=False) as pool:
        futures = [pool.submit(rf"\boxed{{{answer}}}", replace(p, answers=(answer,))) for p, answer in asked]
        wrong = Counter(p.id for (p, _), f in zip(asked, futures, strict=True) if f.result().reason in _NEVER_RIGHT)
    never = {p.id for p in problems if wrong[p.id] == len(p.answers)}
    faults = [
        f"problem {p.id}: ground truth cannot be verified, not even against itself: {', '.join(map(repr, p.answers))}"
        for p in problems
        if p.id in never
    ]
    return [p for p in problems if p.id not in never], faults


def deduplicate(problems: Sequence[Problem]) -> tuple[list[Problem], list[Repeat]]:
    """Keeps the first of the problems that ask the same, and lists the others.

    Questions are the same when they read the same but for case, white space, dollar signs, LaTeX's spacing and sized
    brackets, and the suffix. Signs and digits all count: 1+1 is not 1-1.
    """
    first: dict[str, Problem] = {}
    repeats = []
    for problem in problems:
        kept = first.setdefault(_looks(problem), problem)
        if kept is not problem:
            repeats.append(Repeat(problem, kept, bool(set(kept.answers) & set(problem.answers))))
    return list(first.values()), repeats


def decontaminate(
    problems: Sequence[Problem], benchmarks: Sequence[Problem], *, n: int = 10, threshold: float = 0.0
) -> tuple[list[Problem], list[Overlap]]:
    """Keeps the problems that share no n words in a row with a benchmark's question, and lists the others.

    Words are letters and digits, case does not count, the suffix is left out. A question of fewer than n words counts
    as one n-gram. threshold: a problem is kept while it holds at most this share of a benchmark question's n-grams; at
    0 one is enough, even such as "where m and n are relatively prime positive integers find m", which many questions
    end with. An overlap names the question of which most is found.
    """
    grams = [(asked, _ngrams(asked, n)) for asked in benchmarks]
    where: dict[tuple[str, ...], list[int]] = {}
    for number, (_, found) in enumerate(grams):
        for gram in dict.fromkeys(found):
            where.setdefault(gram, []).append(number)
    kept, overlaps = [], []
    for problem in problems:
        hits: dict[int, list[tuple[str, ...]]] = {}
        for gram in dict.fromkeys(_ngrams(problem, n)):
            for number in where.get(gram, ()):
                hits.setdefault(number, []).append(gram)
        shares = {number: len(found) / len(set(grams[number][1])) for number, found in hits.items()}
        worst = max(shares, key=shares.get, default=None)
        if worst is None or shares[worst] <= threshold:
            kept.append(problem)
        else:
            overlaps.append(Overlap(problem, grams[worst][0], " ".join(hits[worst][0]), shares[worst]))
    return kept, overlaps


def _looks(problem: Problem) -> str:
    return _LOOKS.sub("", bare_question(problem.question).replace(r"\dfrac", r"\frac")).lower()


def _ngrams(problem: Problem, n: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(bare_question(problem.question).lower())
    if len(words) < n:
        return [tuple(words)] if words else []
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
