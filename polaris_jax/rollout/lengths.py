"""What running sequences will need: how long they get, and how many pages they then hold at once. Pure Python."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate


class Lengths:
    """The share of responses that go on beyond each length, as Kaplan and Meier estimate it (JASA 53, 1958).

    ended: lengths of responses that ended by themselves. unfinished: lengths so far of the others, cut off or still
    under way; each counts at the lengths that it has passed, so that short ones, which end first, do not mislead.
    Beyond the longest that has ended every response is expected to go on to its limit.
    """

    def __init__(self, ended: Iterable[int], unfinished: Iterable[int]):
        ended, unfinished = sorted(ended), sorted(unfinished)
        # From each of these lengths to the next: the share that goes on, and the area below the shares before it.
        self._lengths, self._shares, self._areas = [0], [1.0], [0.0]
        for length in sorted(set(ended)):
            before, behind = bisect_left(ended, length), bisect_right(ended, length)
            alive = len(ended) - before + len(unfinished) - bisect_left(unfinished, length)
            self._areas.append(self._area(length))
            self._shares.append(self._shares[-1] * (1 - (behind - before) / alive))
            self._lengths.append(length)

    def left(self, produced: int, limit: int) -> float:
        """Tokens that an unfinished response with `produced` of at most `limit` tokens is expected to gain."""
        share = self._shares[bisect_right(self._lengths, produced) - 1]
        return (self._area(limit) - self._area(produced)) / share

    def _area(self, length: int) -> float:
        i = bisect_right(self._lengths, length) - 1
        return self._areas[i] + self._shares[i] * (length - self._lengths[i])


def most_pages(demands: Sequence[tuple[int, int]], page_size: int) -> float:
    """The most pages that sequences hold at once while each gains a token where all others do, until it ends.

    demands: for each sequence minus the tokens that it will gain, and the tokens that it has; in ascending order, so
    that the last to end comes first. The last page of each counts whole.
    """
    tokens = accumulate(own for _, own in demands)  # of those that end last, one more each time
    ends = zip(demands, tokens, strict=True)
    return max(n + (own - n * minus_left) / page_size for n, ((minus_left, _), own) in enumerate(ends, start=1))
