"""A queue of work in which tenants rotate: the tenant that was served least recently is next.

However much one tenant puts in, another waits for at most one item of each tenant before it. Items of one tenant
leave in the order in which they came. Not safe between threads.
"""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

MOST_REMEMBERED = 4096
"""How many tenants without waiting items are remembered; whoever was served longest ago is forgotten first."""

Item = TypeVar("Item")


class Rotation(Generic[Item]):
    """Items that wait, by tenant. A tenant that was never served is served before those that were."""

    def __init__(self) -> None:
        self._items: dict[Hashable, deque[Item]] = {}
        self._order: list[tuple[int, int, Hashable]] = []
        self._served: OrderedDict[Hashable, int] = OrderedDict()
        self._services = 0
        self._arrivals = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, tenant: Hashable, item: Item) -> None:
        """Add an item behind the others of its tenant."""
        if tenant not in self._items:
            self._items[tenant] = deque()
            self._line_up(tenant)
        self._items[tenant].append(item)
        self._length += 1

    def take(self) -> Item:
        """Remove and return the oldest item of the tenant served least recently; raises IndexError when empty."""
        _, _, tenant = self._order.pop(0)
        items = self._items[tenant]
        item = items.popleft()
        self._length -= 1
        self._services += 1
        self._served[tenant] = self._services
        self._served.move_to_end(tenant)
        if items:
            self._line_up(tenant)
        else:
            del self._items[tenant]
            self._forget()
        return item

    def discard(self, tenant: Hashable, item: Item) -> bool:
        """Remove an item that nobody waits for any more; it does not count as served. False: it is not here."""
        items = self._items.get(tenant, deque())
        if item not in items:
            return False
        items.remove(item)
        self._length -= 1
        if not items:
            del self._items[tenant]
            self._order = [place for place in self._order if place[2] != tenant]
            self._forget()
        return True

    def _line_up(self, tenant: Hashable) -> None:
        self._arrivals += 1  # no two places are equal, so tenants are never compared
        insort(self._order, (self._served.get(tenant, 0), self._arrivals, tenant))

    def _forget(self) -> None:
        """Bound what is remembered; a tenant that waits keeps its place in any case."""
        while len(self._served) > MOST_REMEMBERED + len(self._items):
            self._served.popitem(last=False)
