"""The scheduler alone, on random workloads: no page is lost or freed twice, nothing starves, everything finishes."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.rollout.kv_pages import NULL_PAGE, PagePool, pages_for
from polaris_jax.rollout.lengths import Lengths
from polaris_jax.rollout.scheduler import Scheduler


def check_pages(scheduler, submitted):
    """Every page is free or owned, by exactly as many as the pool says, and no page is written by two sequences."""
    pool = scheduler.pool
    groups = {sequence.group for sequence in submitted}
    owners = Counter(page for s in scheduler.running for page in s.pages)
    owners.update(page for group in groups for page in group.pages)
    assert NULL_PAGE not in owners
    assert all(pool.owners(page) == owners[page] for page in range(pool.size))
    assert pool.free == pool.size - 1 - len(owners)
    written = Counter()
    for s in scheduler.running:
        assert len(s.pages) == len(set(s.pages))
        written.update(s.pages[s.cached // scheduler.page_size :])
    assert all(count == 1 for count in written.values())


def check_round(scheduler, todo):
    """What a sequence needs is in its pages: everything it reads was prefilled, copied, or there before."""
    assert len(todo.running) <= scheduler.slots
    assert todo.running, "no progress"
    for s in todo.running:
        until = min(s.cached + scheduler.growth, s.group.prompt + s.limit - 1)
        assert len(s.pages) >= pages_for(until, scheduler.page_size)
    for prefill in todo.prefills:
        assert prefill.start % scheduler.page_size == 0
        assert len(prefill.pages) >= pages_for(prefill.end, scheduler.page_size)
    for source, target in todo.copies:
        assert scheduler.pool.owners(source)
        assert scheduler.pool.owners(target) == 1


def expecting(tokens):
    """Within the block each sequence is expected to gain `tokens(produced, limit)` tokens."""
    return mock.patch.object(Lengths, "left", lambda _, produced, limit: tokens(produced, limit))


@st.composite
def workloads(draw):
    page_size = draw(st.sampled_from([1, 3, 8]))
    groups = draw(
        st.lists(
            st.tuples(
                st.integers(1, 30), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)
            ),
            min_size=1,
            max_size=8,
        )
    )  # prompt; (limit, where it stops) of each sample
    least = max(pages_for(prompt + limit - 1, page_size) for prompt, samples in groups for limit, _ in samples)
    return dict(
        page_size=page_size, groups=groups, pool=least + 1 + draw(st.integers(0, 12)),
        slots=draw(st.integers(1, 6)), growth=draw(st.integers(1, 9)), share=draw(st.booleans()),
        rash=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(workloads())
def test_random_workloads_finish_and_leak_nothing(workload):
    with expecting(lambda produced, limit: 1) if workload["rash"] else nullcontext():  # rash: much is preempted
        check_workload(workload)


def check_workload(workload):
    scheduler = Scheduler(
        PagePool(workload["pool"]),
        workload["page_size"],
        workload["slots"],
        workload["growth"],
        share=workload["share"],
    )
    stops, submitted = {}, []
    for prompt, samples in workload["groups"]:
        sequences = scheduler.submit(prompt, [limit for limit, _ in samples])
        submitted += sequences
        stops |= {s: min(limit, stop) for s, (limit, stop) in zip(sequences, samples, strict=True)}
    unfinished = set(submitted)
    for _ in range(sum(stops.values()) + 1):  # the oldest gains a token a round at least
        if not unfinished:
            break
        oldest = min(unfinished, key=lambda s: s.order)
        todo = scheduler.next_round()
        check_round(scheduler, todo)
        check_pages(scheduler, submitted)
        assert oldest in todo.running
        for s in todo.running:
            tokens = min(scheduler.growth, stops[s] - s.produced)
            finished = s.produced + tokens == stops[s]
            scheduler.advance(s, tokens, finished=finished)
            if finished:
                unfinished.remove(s)
        check_pages(scheduler, submitted)
    assert not unfinished
    assert scheduler.pool.free == scheduler.pool.size - 1


def sample_128(pool, lengths):
    """Rounds, and tokens prefilled again for each sampled one, where the pool holds 4 or 8 of the longest at once."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(6, 0.6, 128).clip(1, 1024) if lengths == "lognormal" else rng.integers(1, 1025, 128)
    scheduler, stops = Scheduler(PagePool(pool), page_size=16, slots=128, growth=16), {}
    for group in drawn.astype(int).reshape(16, 8).tolist():
        stops |= dict(zip(scheduler.submit(100, [1024] * 8), group, strict=True))
    again = rounds = 0
    while any(s.produced < stop for s, stop in stops.items()):
        todo = scheduler.next_round()
        rounds += 1
        again += sum(prefill.end - prefill.start for prefill in todo.prefills if prefill.sequence.produced)
        for s in todo.running:
            tokens = min(scheduler.growth, stops[s] - s.produced)
            scheduler.advance(s, tokens, finished=s.produced + tokens == stops[s])
    return rounds, again / sum(stops.values())


@pytest.mark.parametrize("pool", [300, 600])
@pytest.mark.parametrize("lengths", ["lognormal", "uniform"])
def test_on_a_small_pool_little_is_prefilled_again_and_not_for_want_of_neighbours(pool, lengths):
    """Looking ahead saves what admission to any free page prefills again, and most of what whole limits would waste."""
    rounds, again = sample_128(pool, lengths)
    assert again < 0.1
    with expecting(lambda produced, limit: 1):
        assert sample_128(pool, lengths)[1] > 0.4
    with expecting(lambda produced, limit: limit - produced):
        reserved, again = sample_128(pool, lengths)
    assert again == 0
    assert rounds < 0.85 * reserved


def test_a_pool_for_every_slot_leaves_none_empty():
    scheduler = Scheduler(PagePool(8 * 4 + 1), page_size=16, slots=8, growth=16)
    for _ in range(9):
        scheduler.submit(1, [64])
    assert len(scheduler.next_round().running) == 8


def test_the_one_with_the_fewest_tokens_to_prefill_again_is_preempted():
    scheduler = Scheduler(PagePool(10), page_size=8, slots=3, growth=8)
    (oldest,), (short,), (long,) = (scheduler.submit(prompt, [40]) for prompt in (9, 1, 17))
    with expecting(lambda produced, limit: 1):
        for _ in range(2):
            for s in scheduler.next_round().running:
                scheduler.advance(s, 8, finished=False)
        assert (oldest.cached, short.cached, long.cached) == (24, 16, 32)  # 9 pages; with 8 tokens more 12
        todo = scheduler.next_round()
    assert todo.preempted == 1
    assert todo.running == [oldest, long]


def test_a_group_shares_full_pages_and_copies_only_the_last():
    scheduler = Scheduler(PagePool(100), page_size=8, slots=8, growth=4)
    first, *others = scheduler.submit(21, [10] * 4)  # 20 tokens are prefilled: two full pages and a half
    todo = scheduler.next_round()
    assert [(p.start, p.end) for p in todo.prefills] == [(0, 20)]
    assert {tuple(s.pages[:2]) for s in todo.running} == {tuple(first.pages[:2])}
    assert todo.copies == [(first.pages[2], s.pages[2]) for s in others]


def test_what_can_never_fit_is_refused_with_the_arithmetic():
    scheduler = Scheduler(PagePool(5), page_size=8, slots=2, growth=4)
    with pytest.raises(ValueError, match=r"prompt of 10 \+ response of 24 tokens takes 5 pages of 8 tokens, .* has 4"):
        scheduler.submit(10, [24])


def test_pages_are_not_released_twice_nor_shared_when_free():
    pool = PagePool(3)
    pages = pool.allocate(2)
    pool.release(pages)
    with pytest.raises(ValueError, match="released twice"):
        pool.release(pages[:1])
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(pages[:1])
