"""Which sequences run next and on which pages: admission, growth, preemption, prefix sharing. Pure Python, no arrays.

A sequence whose response has n tokens keeps prompt + n - 1 tokens in the cache: the newest token (at first the last
token of the prompt) is what the next decoding step reads. So a group's shared prefix is its prompt without the last
token, prefilled once; its full pages are shared and its last, partial page is copied for each sample but one.

Sequences are ordered as submitted. The oldest unfinished one always runs, and alone it always fits (checked when
submitted), so each round makes progress and nothing starves. The others are admitted in their order, each when the pool
holds what all that run are expected to need until they end (`lengths.py`). Where they get longer than expected, the one
with the fewest tokens to prefill again is preempted.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from polaris_jax.rollout.kv_pages import PagePool, pages_for
from polaris_jax.rollout.lengths import Lengths, most_pages


@dataclass(eq=False)
class PromptGroup:
    """Sequences with one prompt. pages: of the prefix, owned by the group as well; empty when it is not cached."""

    prompt: int  # tokens
    unfinished: int = 0  # sequences
    pages: list[int] = field(default_factory=list)
    used_in_round: int = -1  # a prefix used in this round stays until its copies are made


@dataclass(eq=False)
class Scheduled:
    """One response. order: its rank among all. limit: most response tokens. produced: response tokens so far."""

    order: int
    group: PromptGroup
    limit: int
    produced: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache while it runs."""
        return self.group.prompt + self.produced - 1

    def __lt__(self, other: Scheduled) -> bool:
        return self.order < other.order


@dataclass(frozen=True)
class Prefill:
    """Compute tokens start .. end - 1 of a sequence into its pages; start is a multiple of the page size."""

    sequence: Scheduled
    start: int
    end: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """What to do next: all prefills from position 0, then the others, then the page copies, then decode `running`."""

    prefills: list[Prefill]
    copies: list[tuple[int, int]]
    running: list[Scheduled]
    preempted: int


class Scheduler:
    """slots: sequences that run at once. growth: tokens a sequence may gain between two rounds."""

    def __init__(self, pool: PagePool, page_size: int, slots: int, growth: int, *, share: bool = True):
        self.pool, self.page_size, self.slots, self.growth, self.share = pool, page_size, slots, growth, share
        self.running: list[Scheduled] = []  # oldest first
        self._preempted: list[Scheduled] = []  # heap; all of them are older than every new one
        self._new: deque[Scheduled] = deque()
        self._holders: dict[PromptGroup, None] = {}  # groups that own their prefix's pages, oldest first
        self._ended: list[int] = []  # lengths of responses that ended by themselves
        self._cut_off: list[int] = []  # and of those that their limit ended
        self._orders = 0
        self._rounds = 0

    @property
    def waiting(self) -> int:
        """Sequences that are not running."""
        return len(self._preempted) + len(self._new)

    def submit(self, prompt: int, limits: Iterable[int]) -> list[Scheduled]:
        """A group of sequences, one for each limit. prompt: tokens, at least 1.

        Raises ValueError, with the arithmetic, for a sequence that would not fit even alone.
        """
        group = PromptGroup(prompt)
        sequences = []
        for limit in limits:
            need, have = self._pages_at_most(prompt, limit), self.pool.size - 1
            if need > have:
                raise ValueError(
                    f"prompt of {prompt} + response of {limit} tokens takes {need} pages of {self.page_size} tokens, "
                    f"the pool has {have}: raise rollout.cache_gib or lower rollout.max_response_tokens"
                )
            sequences.append(Scheduled(self._orders, group, limit))
            self._orders += 1
        group.unfinished = len(sequences)
        self._new.extend(sequences)
        return sequences

    def next_round(self) -> Round:
        """Places the oldest sequence, grows the running ones, preempting where pages run out, and admits others."""
        self._rounds += 1
        prefills: list[Prefill] = []
        copies: list[tuple[int, int]] = []
        preempted = self._admit_oldest(prefills, copies) + self._grow()
        if not preempted:
            self._admit(prefills, copies)
        return Round(prefills, copies, list(self.running), preempted)

    def advance(self, sequence: Scheduled, tokens: int, *, finished: bool) -> None:
        """Records that a running sequence gained tokens, and takes its pages when it is finished."""
        sequence.produced += tokens
        if not finished:
            return
        (self._ended if sequence.produced < sequence.limit else self._cut_off).append(sequence.produced)
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.group.unfinished -= 1
        if sequence.group.unfinished == 0:
            self._drop_prefix(sequence.group)

    def _pages_at_most(self, prompt: int, limit: int) -> int:
        return pages_for(prompt + limit - 1, self.page_size)

    def _pages_next(self, sequence: Scheduled) -> int:
        """Pages that a sequence needs to gain `growth` tokens, or what is left to its limit."""
        last = sequence.group.prompt + sequence.limit - 1
        return pages_for(min(sequence.cached + self.growth, last), self.page_size)

    def _grow(self) -> int:
        preempted = 0
        for sequence in list(self.running):
            while sequence in self.running:
                pages = self._allocate(self._pages_next(sequence) - len(sequence.pages))
                if pages is not None:
                    sequence.pages += pages
                    break
                self._preempt()
                preempted += 1
        return preempted

    def _preempt(self) -> None:
        """Takes the pages of the sequence that has the fewest tokens to prefill again; the oldest keeps its own."""
        sequence = min(self.running[1:], key=lambda s: (s.cached, -s.order))
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        heapq.heappush(self._preempted, sequence)

    def _admit_oldest(self, prefills: list[Prefill], copies: list[tuple[int, int]]) -> int:
        """Places the oldest sequence where it waits, whomever that preempts; returns how many."""
        preempted = 0
        if self.waiting and not (self.running and self.running[0] < self._next_waiting()):
            sequence = self._next_waiting()
            self._take_waiting(sequence)
            while not self._place(sequence, prefills, copies):
                self._preempt()
                preempted += 1
        return preempted

    def _admit(self, prefills: list[Prefill], copies: list[tuple[int, int]]) -> None:
        """Admits waiting sequences in their order, while the pool holds what all are expected to need, or may need."""
        if not self.waiting or len(self.running) == self.slots:
            return
        unfinished = (s.produced for s in (*self.running, *self._preempted))
        lengths = Lengths(self._ended, [*self._cut_off, *unfinished])
        demands = sorted(self._demand(s, lengths) for s in self.running)
        shared = {page for s in self.running for page in s.pages[: self._full(s.group)]}
        whole = sum(self._pages_at_most(s.group.prompt, s.limit) for s in self.running)
        while self.waiting and len(self.running) < self.slots:
            sequence = self._next_waiting()
            full = self._full(sequence.group)
            insort(demands, self._demand(sequence, lengths))
            prefixes = len(shared.union(sequence.group.pages[:full])) + (0 if sequence.group.pages else full)
            whole += self._pages_at_most(sequence.group.prompt, sequence.limit)
            if min(prefixes + most_pages(demands, self.page_size), whole) > self.pool.size - 1:
                break
            if not self._place(sequence, prefills, copies):
                break
            self._take_waiting(sequence)
            shared.update(sequence.pages[:full])

    def _next_waiting(self) -> Scheduled:
        return (self._preempted or self._new)[0]

    def _take_waiting(self, sequence: Scheduled) -> None:
        """The next waiting sequence runs from now on."""
        heapq.heappop(self._preempted) if self._preempted else self._new.popleft()
        insort(self.running, sequence)

    def _demand(self, sequence: Scheduled, lengths: Lengths) -> tuple[int, int]:
        """For `most_pages`: the tokens that it gains, in whole rounds, and those behind its prefix's full pages."""
        rounds = math.ceil(lengths.left(sequence.produced, sequence.limit) / self.growth)
        left = min(rounds * self.growth, sequence.limit - sequence.produced)
        return -left, sequence.cached - self._full(sequence.group) * self.page_size

    def _full(self, group: PromptGroup) -> int:
        """Pages of a group's prefix that are full, so that nobody writes to them."""
        return (group.prompt - 1) // self.page_size

    def _place(self, sequence: Scheduled, prefills: list[Prefill], copies: list[tuple[int, int]]) -> bool:
        """Gives a waiting sequence its pages and notes what has to be computed; False when there are not enough."""
        group, total = sequence.group, self._pages_next(sequence)
        prefix, full = group.prompt - 1, self._full(group)
        if sequence.produced or not self.share:
            shared = list(group.pages[:full])
            self.pool.share(shared)
            pages = self._allocate(total - len(shared))
            if pages is None:
                self.pool.release(shared)
                return False
            sequence.pages = shared + pages
            if sequence.cached > len(shared) * self.page_size:
                start = len(shared) * self.page_size
                prefills.append(Prefill(sequence, start, sequence.cached, tuple(sequence.pages)))
            return True

        held = pages_for(prefix, self.page_size)  # pages of the prefix, the partial one included
        fresh = held > len(group.pages)
        adopts = held > full and (fresh or self.pool.owners(group.pages[-1]) == 1)
        kept = full + adopts  # pages of the prefix that become this sequence's
        group.used_in_round = self._rounds
        pages = self._allocate(total - kept + (held if fresh else 0))
        if pages is None:
            return False
        if fresh:
            group.pages, pages = pages[:held], pages[held:]
            self._holders[group] = None
            prefills.append(Prefill(sequence, 0, prefix, tuple(group.pages)))
        self.pool.share(group.pages[:kept])
        sequence.pages = group.pages[:kept] + pages
        if held > kept:
            copies.append((group.pages[-1], sequence.pages[full]))
        return True

    def _allocate(self, count: int) -> list[int] | None:
        """Pages, taken from prefixes that no running sequence uses when the free ones are not enough."""
        for group in list(self._holders):
            if self.pool.free >= count:
                break
            if group.used_in_round != self._rounds:
                self._drop_prefix(group)
        return self.pool.allocate(count) if count > 0 else []

    def _drop_prefix(self, group: PromptGroup) -> None:
        self.pool.release(group.pages)
        group.pages = []
        self._holders.pop(group, None)
