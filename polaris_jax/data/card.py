"""A dataset of our own on disk: parquet with the columns of the released files, and a card that says what it is."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from polaris_jax.files import staged, write_whole
from polaris_jax.types import Problem

_SHADES = ("#a8c6e0", "#1f5f99")  # of the histogram of all, and of what is kept
RELEASED_COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")


def write_dataset(
    directory: str | Path, problems: Sequence[Problem], *, title: str, history: Sequence[str] = (), rollouts: int = 8
) -> Path:
    """Writes problems.parquet, README.md (the card) and, where accuracies are known, difficulty.png.

    history: what was done to get these problems, a line each. rollouts: difficulties are written as k of so many where
    that is exact. `load_problems(directory)` gives the problems back. Raises ValueError without problems.
    """
    if not problems:
        raise ValueError("a dataset without problems")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_parquet(directory / "problems.parquet", problems, rollouts=rollouts)
    measured = [problem.accuracy for problem in problems if problem.accuracy is not None]
    if measured:
        with staged(directory / "difficulty.png") as path:
            difficulty_picture({title: measured}, rollouts=rollouts).savefig(path, dpi=120)
    write_whole(directory / "README.md", card(problems, title=title, history=history, rollouts=rollouts))
    return directory


def write_parquet(path: str | Path, problems: Sequence[Problem], *, split: str = "train", rollouts: int = 8) -> None:
    """The problems with the columns of the released files; the file appears whole or not at all.

    A ground truth is a text, or a list where any problem has alternatives. A known accuracy is `extra_info.difficulty`,
    such as "3/8".
    """
    lists = any(len(problem.answers) > 1 for problem in problems)
    rows = [
        {
            "data_source": problem.source,
            "prompt": [{"role": "user", "content": problem.question}],
            "ability": problem.kind,
            "reward_model": {
                "ground_truth": list(problem.answers) if lists else problem.answers[0],
                "style": "rule",
            },
            "extra_info": {
                "index": index,
                "split": split,
                "id": problem.id,
                "kind": problem.kind,
                "metadata": problem.metadata,
                "difficulty": None if problem.accuracy is None else difficulty(problem.accuracy, rollouts),
            },
        }
        for index, problem in enumerate(problems)
    ]
    with staged(path) as staging:
        pd.DataFrame(rows).to_parquet(staging, index=False)


def difficulty(accuracy: float, rollouts: int = 8) -> str:
    """An accuracy as "k/n": of `rollouts` where that is exact, else the nearest fraction with n up to 10,000."""
    right = round(accuracy * rollouts)
    if right / rollouts == accuracy:
        return f"{right}/{rollouts}"
    found = Fraction(accuracy).limit_denominator(10_000)
    return f"{found.numerator}/{found.denominator}"


def histogram(accuracies: Sequence[float], rollouts: int = 8) -> np.ndarray:
    """How many accuracies are nearest to k of `rollouts`: int64 [rollouts + 1], for k = 0 ... rollouts."""
    nearest = np.rint(np.asarray(accuracies, np.float64) * rollouts).astype(np.int64)
    return np.bincount(nearest, minlength=rollouts + 1)


def difficulty_picture(accuracies: dict[str, Sequence[float]], *, rollouts: int = 8) -> Figure:
    """A histogram for each named list in one panel, each in front of the one before: from solved never to always."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(accuracies.items()):
        count = histogram(values, rollouts)
        bars = axes.bar(
            range(rollouts + 1), count, 0.84 - 0.24 * number, color=_SHADES[number], label=f"{name}: {count.sum():,}"
        )
        if not number:
            shares = 100 * count / max(count.sum(), 1)
            axes.bar_label(bars, [f"{n:,}\n{share:.0f}%" for n, share in zip(count, shares, strict=True)], fontsize=8)
    axes.set(xlabel=f"right of {rollouts} rollouts", ylabel="problems", xticks=range(rollouts + 1))
    axes.margins(y=0.16)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _cell(text: str) -> str:
    """A text that a dataset gave as one cell of a Markdown table, in which it is neither HTML nor a second cell."""
    return html.escape(" ".join(text.split())).replace("|", "&#124;")


def card(problems: Sequence[Problem], *, title: str, history: Sequence[str] = (), rollouts: int = 8) -> str:
    """The card in Markdown: counts, sources, length of questions, answers, how it was made, difficulty."""
    words = [len(problem.question.split()) for problem in problems]
    measured = [problem.accuracy for problem in problems if problem.accuracy is not None]
    lines = [f"# {title}", "", f"{len(problems):,} problems in `problems.parquet`; columns: "]
    lines[-1] += ", ".join(f"`{column}`" for column in RELEASED_COLUMNS) + "."
    lines += ["", "| source | problems |", "|---|---|"]
    lines += [
        f"| {_cell(name) or '?'} | {n:,} |" for name, n in Counter(problem.source for problem in problems).most_common()
    ]
    lines += ["", f"Words in a question, suffix included: median {np.median(words):.0f}, longest {max(words)}. "]
    lines[-1] += f"Problems with several right answers: {sum(len(problem.answers) > 1 for problem in problems):,}."
    if history:
        lines += ["", "## How it was made", "", *(f"{i}. {line}" for i, line in enumerate(history, start=1))]
    lines += ["", "## Difficulty", ""]
    if not measured:
        return "\n".join([*lines, "Not measured."]) + "\n"
    lines += [f"Share of right rollouts, known for {len(measured):,} problems, mean {np.mean(measured):.3f}.", ""]
    lines += ["![difficulty](difficulty.png)", "", f"| solved of {rollouts} | problems |", "|---|---|"]
    lines += [f"| {k} | {n:,} |" for k, n in enumerate(histogram(measured, rollouts))]
    return "\n".join(lines) + "\n"
