"""The rival of the crowd gate: records made k-anonymous one by one, in a stream.

It follows CASTLE (Cao, Carminati, Ferrari, Tan: "CASTLE: Continuously Anonymizing Data Streams", IEEE TDSC 8, 2011) and
Prink (Groneberg et al., arXiv:2505.13153, 2025): a record waits for a bounded time, and leaves in a group of at least k
distinct people whose country, product and hour are made equal. Where a group is too small it is merged with the
nearest; who finds none is suppressed. Two things differ, both for good reason:

- The product is given up last: that is what a shop asks for.
- Groups are not used again. CASTLE lets a record join one that has left: alone, at its last moment, which tells when it
  came.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

__all__ = ["EDGES", "Group", "Key", "Purchase", "Stream", "keys", "range_of", "ranges_of"]

EDGES = (2, 6, 12, 48)
"""Between the ranges of quantities: those of `schemas/policies/retail.yaml` at `anonymous`."""

Key = tuple[str, str, str]
"""Country, product and hour, as they are or made more general; empty: any."""


class Purchase(NamedTuple):
    """One line of an invoice; `number` is its place in time."""

    number: int
    person: str
    country: str
    product: str
    hour: str
    at: int
    quantity: int
    price: float


class Group(NamedTuple):
    """Records that leave together under one key, and when. No key: the records are suppressed."""

    key: Key | None
    at: int
    members: list[Purchase]

    @property
    def people(self) -> int:
        """How many distinct people it has."""
        return len({member.person for member in self.members})


def range_of(quantity: int) -> int:
    """Return which range a quantity lies in."""
    return bisect_right(EDGES, quantity)


@cache
def _keys(country: str, code: str, hour: str) -> tuple[Key, ...]:
    home = country if country == "United Kingdom" else "abroad"
    steps = product((code, code[:3], code[:2], ""), (hour, hour[:10], ""), (country, home, ""))
    return tuple(dict.fromkeys((place, thing, when) for thing, when, place in steps))


def keys(purchase: Purchase) -> tuple[Key, ...]:
    """Return all keys that a purchase fits, the nearest first: the product is given up last, the country first."""
    return _keys(purchase.country, purchase.product, purchase.hour)


class Stream:
    """The rival: records wait for at most `delay`, and leave in groups of at least k distinct people.

    Groups are small, which tells most: the oldest of k people leave. If they are
    `large`, all that have nothing nearer do. `diverse`: there are two ranges of quantities in each group
    (Machanavajjhala et al.: "l-Diversity", ICDE 2006, with l = 2).
    """

    def __init__(self, k: int, delay: int, large: bool = False, diverse: bool = False) -> None:
        self._k, self._delay, self._large, self._diverse = k, delay, large, diverse
        self._waiting: dict[int, Purchase] = {}
        self._fits: dict[Key, dict[str, dict[int, Purchase]]] = {}
        """by key and person: the records that wait"""
        self.held = 0

    def add(self, purchase: Purchase) -> Iterator[Group]:
        """Take a record; yield the groups that are due before it."""
        yield from self.due(purchase.at)
        self._waiting[purchase.number] = purchase
        self.held = max(self.held, len(self._waiting))
        for key in keys(purchase):
            self._fits.setdefault(key, {}).setdefault(purchase.person, {})[purchase.number] = purchase

    def due(self, now: float) -> Iterator[Group]:
        """Yield the groups that must leave until now."""
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.at + self._delay > now:
                return
            key = self._nearest(oldest)
            members = [oldest] if key is None else self._members(key)
            for member in members:
                self._take(member)
            yield Group(key, oldest.at + self._delay, members)

    def _nearest(self, purchase: Purchase) -> Key | None:
        return next((key for key in keys(purchase) if len(self._fits[key]) >= self._k and self._varies(key)), None)

    def _varies(self, key: Key) -> bool:
        return not self._diverse or len(ranges_of(self._all(key))) > 1

    def _all(self, key: Key) -> Iterator[Purchase]:
        return (one for theirs in self._fits[key].values() for one in theirs.values())

    def _enough(self, members: list[Purchase]) -> bool:
        people = {one.person for one in members}
        return len(people) >= self._k and (not self._diverse or len(ranges_of(members)) > 1)

    def _members(self, key: Key) -> list[Purchase]:
        """Return who leaves under a key, the oldest first: who has none nearer, or also others if these are few."""
        everyone = sorted(self._all(key))
        rest = [one for one in everyone if self._nearest(one) == key]
        if not self._enough(rest):
            rest = everyone
        fewest = len(rest) if self._large else self._k
        return rest[: next(count for count in range(fewest, len(rest) + 1) if self._enough(rest[:count]))]

    def _take(self, purchase: Purchase) -> None:
        del self._waiting[purchase.number]
        for key in keys(purchase):
            people = self._fits[key]
            del people[purchase.person][purchase.number]
            if not people[purchase.person]:
                del people[purchase.person]
            if not people:
                del self._fits[key]


def ranges_of(members: Iterable[Purchase]) -> set[int]:
    """Return the ranges of quantities that some purchases have."""
    return {range_of(member.quantity) for member in members}
