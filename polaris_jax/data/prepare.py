"""From raw datasets to one clean dataset on disk, with a record of all that was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from polaris_jax import hf
from polaris_jax.data.card import write_dataset
from polaris_jax.data.cleaning import Overlap, Repeat, decontaminate, deduplicate, verifiable
from polaris_jax.data.problems import BENCHMARKS, SUFFIX, benchmark, load_problems
from polaris_jax.data.prompts import make_prompts
from polaris_jax.errors import UserError
from polaris_jax.files import write_whole
from polaris_jax.types import Problem


class Prepared(NamedTuple):
    """problems: what is left. history: what was done, a line each, as on the card."""

    problems: list[Problem]
    history: list[str]


def prepare(
    sources: Sequence[str],
    output: str | Path,
    *,
    title: str = "",
    suffix: str = SUFFIX,
    tokenizer: str | None = None,
    max_prompt_tokens: int = 1024,
    ngram: int = 10,
    overlap_share: float = 0.0,
) -> Prepared:
    """Loads the sources in order and writes what is left of them, with a card, into `output`.

    Left out are problems whose ground truth cannot be verified, repeats, problems that share `ngram` words in a row
    with one of the five benchmarks, and prompts over `max_prompt_tokens` of the tokenizer.

    overlap_share: `threshold` of `cleaning.decontaminate`. Also writes skipped.txt (what cannot be used), repeats.csv
    and overlaps.csv (with the words shared). Raises UserError for a source that cannot be read, and where nothing is
    left.
    """
    encoder = hf.load_tokenizer(tokenizer) if tokenizer else None
    problems, history, skipped = [], [], []
    for source in sources:
        found = load_problems(source, suffix=suffix, skipped=(left_out := []))
        history.append(f"{source}: {len(found):,} problems; {len(left_out):,} rows left out, see skipped.txt.")
        problems += found
        skipped += left_out
    problems, faults = verifiable(problems)
    history.append(f"Ground truths that cannot be verified: {len(faults):,} problems left out, see skipped.txt.")
    skipped += faults
    problems, repeats = deduplicate(problems)
    differ = sum(not repeat.same_answer for repeat in repeats)
    history.append(f"Repeats across sources: {len(repeats):,} left out, {differ:,} of them with another answer.")
    asked = [problem for name in BENCHMARKS for problem in benchmark(name)]
    problems, overlaps = decontaminate(problems, asked, n=ngram, threshold=overlap_share)
    history.append(f"Shared {ngram} words in a row with a benchmark: {len(overlaps):,} left out{_counts(overlaps)}.")
    copies = sum(overlap.share > 0.5 for overlap in overlaps)
    history[-1] += f" {copies:,} of them hold more than half of its question."
    if encoder is not None:
        prompts = make_prompts(problems, encoder, max_prompt_tokens)
        kept = [prompt.problem for prompt in prompts]
        history.append(f"Prompts over {max_prompt_tokens:,} tokens: {len(problems) - len(kept):,} left out.")
        problems = kept
    if not problems:
        raise UserError(f"{', '.join(sources)}: no problem is left: {' '.join(history)}")
    output = write_dataset(output, problems, title=title or Path(output).name, history=history)
    write_whole(output / "skipped.txt", "".join(f"{line}\n" for line in skipped))
    write_whole(output / "repeats.csv", pd.DataFrame(map(_repeat, repeats)).to_csv(index=False))
    write_whole(output / "overlaps.csv", pd.DataFrame(map(_overlap, overlaps)).to_csv(index=False))
    return Prepared(problems, history)


def _counts(overlaps: Sequence[Overlap]) -> str:
    counts = Counter(overlap.asked.source for overlap in overlaps)
    return f" ({', '.join(f'{name} {count:,}' for name, count in counts.items())})" if counts else ""


def _repeat(repeat: Repeat) -> dict[str, Any]:
    return {
        "question": repeat.problem.question,
        "source": repeat.problem.source,
        "answers": " or ".join(repeat.problem.answers),
        "kept_source": repeat.first.source,
        "kept_answers": " or ".join(repeat.first.answers),
        "same_answer": repeat.same_answer,
    }


def _overlap(overlap: Overlap) -> dict[str, Any]:
    return {
        "question": overlap.problem.question,
        "source": overlap.problem.source,
        "benchmark": overlap.asked.source,
        "benchmark_question": overlap.asked.question,
        "shared": overlap.shared,
        "share": overlap.share,
    }
