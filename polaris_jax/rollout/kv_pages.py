"""The page pool's bookkeeping: which pages are free, and how many owners each other page has. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable

NULL_PAGE = 0  # never handed out: padding reads and writes go there


def pages_for(tokens: int, page_size: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // page_size)


class PagePool:
    """Pages 1 .. size - 1 with reference counts; page 0 is the null page."""

    def __init__(self, size: int):
        self.size = size
        self._free = list(range(size - 1, NULL_PAGE, -1))
        self._owners = [0] * size

    @property
    def free(self) -> int:
        """Number of pages nobody owns."""
        return len(self._free)

    def owners(self, page: int) -> int:
        """Number of owners of a page."""
        return self._owners[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one owner each, or None, and nothing changed, when fewer are free."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._owners[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each page. Raises ValueError when a page has none."""
        for page in pages:
            if self._owners[page] == 0:
                raise ValueError(f"page {page} is free and cannot be shared")
            self._owners[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One owner less for each page; without owners it is free. Raises ValueError on a page that is free already."""
        for page in pages:
            if self._owners[page] == 0:
                raise ValueError(f"page {page} is released twice")
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free.append(page)
