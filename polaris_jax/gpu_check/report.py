"""The results as a table."""

from __future__ import annotations

from rich.table import Table

from polaris_jax.gpu_check.runner import CheckResults, Result, found


def table(outcome: CheckResults) -> Table:
    """One row a check. of_copy, of_product, of_peer: relative to copies and products of this machine, and to torch."""
    title = ", ".join(f"{name} {value}" for name, value in outcome.machine.items())
    rows = Table("check", "status", "s", "found", title=f"size {outcome.size}: {title}")
    for r in outcome.results:
        rows.add_row(r.check, r.status, f"{r.seconds:.0f}", found(r))
    return rows


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
