"""The results as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from polaris_jax.gpu_check.runner import CheckResults, Result, number

TITLES = {
    "ceilings": "copies and products of this machine",
    "kernel": "kernels with the model's heads: error against float32, and the portable version's",
    "rollout": "decoding; of_copy: relative to the copy speed",
    "gap": "log-probs, sampler to trainer",
    "update": "update; of_DTYPE: relative to the product speed, of_tokens: to transformers + torch",
    "peer": "the same update in transformers + torch",
    "apply": "the optimizer's part of an update",
    "step": "one whole step",
    "profile": "device time by kernel",
    "heads": "kernels with other heads",
    "longest": "rows tried in search of the longest that trains",
}


def tables(outcome: CheckResults) -> Iterator[Table]:
    """One table for each kind of check."""
    for kind, title in TITLES.items():
        results = [r for r in outcome.results if r.check.partition("/")[0] == kind]
        columns = list(dict.fromkeys(name for r in results for name in r.values))
        if not results:
            continue
        table = Table("check", "status", "s", *columns, title=title)
        for r in results:
            table.add_row(r.check, r.status, f"{r.seconds:.0f}", *(number(r.values.get(name)) for name in columns))
        yield table


def longest_response(outcome: CheckResults) -> str:
    """One line on the longest response that trained."""
    tried = [r for r in outcome.results if r.check.startswith("longest/")]
    trained = [r.values["response_tokens"] for r in tried if r.status == "ok"]
    if not trained:
        return "longest response that trains: none of those tried" if tried else "longest response: not tried yet"
    more = "" if any(r.status != "ok" for r in tried) else " or more"
    return f"longest response that trains: {max(trained):,} tokens{more}"


def failed(outcome: CheckResults) -> list[Result]:
    """The checks that did not do what they must. How much fits is a finding, but a kernel must."""
    return [r for r in outcome.results if r.status in ("failed", "error") or _kernel_too_large(r)]


def _kernel_too_large(r: Result) -> bool:
    return r.check.startswith(("kernel/", "heads/")) and r.status == "does not fit"
