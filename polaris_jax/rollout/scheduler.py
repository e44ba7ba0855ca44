"""Which sequences run next and on which pages: admission, growth, preemption, prefix sharing. Pure Python, no arrays.

A sequence whose response has n tokens keeps prompt + n - 1 tokens in the cache: the newest token (at first the last
token of the prompt) is what the next decoding step reads. So a group's shared prefix is its prompt without the last
token, prefilled once; its full pages are shared and its last, partial page is copied for each sample but one.

Sequences are ordered as submitted. The oldest unfinished one is never preempted and alone always fits (checked when
submitted), so each round makes progress and nothing starves.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from polaris_jax.rollout.kv_pages import PagePool, pages_for


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
        """Grows the running sequences, preempting the youngest when pages run out, and admits waiting ones."""
        self._rounds += 1
        preempted = self._grow()
        prefills, copies = ([], []) if preempted else self._admit()
        return Round(prefills, copies, list(self.running), preempted)

    def advance(self, sequence: Scheduled, tokens: int, *, finished: bool) -> None:
        """Records that a running sequence gained tokens, and takes its pages when it is finished."""
        sequence.produced += tokens
        if not finished:
            return
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
                self._preempt(self.running[-1])
                preempted += 1
        return preempted

    def _preempt(self, sequence: Scheduled) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        heapq.heappush(self._preempted, sequence)

    def _admit(self) -> tuple[list[Prefill], list[tuple[int, int]]]:
        prefills: list[Prefill] = []
        copies: list[tuple[int, int]] = []
        while self.waiting and len(self.running) < self.slots:
            queue = self._preempted or self._new
            sequence = queue[0]
            admitted = self._place(sequence, prefills, copies)
            if not admitted:
                break
            heapq.heappop(self._preempted) if queue is self._preempted else self._new.popleft()
            self.running.append(sequence)
        self.running.sort()
        return prefills, copies

    def _place(self, sequence: Scheduled, prefills: list[Prefill], copies: list[tuple[int, int]]) -> bool:
        """Gives a waiting sequence its pages and notes what has to be computed; False when there are not enough."""
        group, total = sequence.group, self._pages_next(sequence)
        prefix = group.prompt - 1  # tokens
        full = prefix // self.page_size  # pages of the prefix that nobody writes to
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
