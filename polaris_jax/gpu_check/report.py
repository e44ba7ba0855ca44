"""The results as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from polaris_jax.gpu_check.runner import CheckResults, Result

TITLES = {
    "speed": "products and copies of this machine",
    "kernel": "kernels: error against float32, and the portable version's",
    "gap": "log-probs, sampler to trainer",
    "rollout": "decoding",
    "update": "update",
    "step": "one whole step",
    "longest": "rows tried in search of the longest that trains",
}


def tables(outcome: CheckResults) -> Iterator[Table]:
    """One table for each kind of check."""
    for kind, title in TITLES.items():
        results = [r for r in outcome.results if r.check.partition("/")[0] == kind]
        columns = list(dict.fromkeys(name for r in results for name in r.values))
        if not results:
            continue
        table = Table("check", "status", *columns, title=title)
        for r in results:
            table.add_row(r.check, r.status, *(number(r.values.get(name)) for name in columns))
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
    return r.check.startswith("kernel/") and r.status == "does not fit"


def number(value: object) -> str:
    """Three digits of a number; other values as they are."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)
