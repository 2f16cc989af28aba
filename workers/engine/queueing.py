"""The orders that wait for a place in an engine: tenants rotate, the one served least recently first. Pure.

Within a tenant the oldest order is first. Unlike :class:`models.rotation.Rotation` it lets orders be passed over, such
as one whose beginning another is just computing.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_MOST_REMEMBERED = 4096

Order = TypeVar("Order")


class WaitingOrders(Generic[Order]):
    """Orders by tenant; ``tenant_of`` names an order's."""

    def __init__(self, tenant_of: Callable[[Order], str]) -> None:
        self._tenant_of = tenant_of
        self._orders: dict[str, deque[Order]] = {}
        self._served: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._orders.values()))

    def __iter__(self) -> Iterator[Order]:
        """In the order in which they are to be served if nothing changes: a turn of every tenant, then another."""
        turn = 0
        tenants = self._in_turn()
        while tenants:
            tenants = [tenant for tenant in tenants if turn < len(self._orders[tenant])]
            for tenant in tenants:
                yield self._orders[tenant][turn]
            turn += 1

    def put(self, order: Order) -> None:
        """Add an order behind the others of its tenant."""
        self._orders.setdefault(self._tenant_of(order), deque()).append(order)

    def serve(self, order: Order) -> None:
        """Take an order out because it is its turn: its tenant is the last in turn."""
        tenant = self._tenant_of(order)
        self.remove(order)
        self._served[tenant] = None
        self._served.move_to_end(tenant)
        while len(self._served) > _MOST_REMEMBERED:
            self._served.popitem(last=False)

    def remove(self, order: Order) -> None:
        """Take an order out that is not served."""
        tenant = self._tenant_of(order)
        self._orders[tenant].remove(order)
        if not self._orders[tenant]:
            del self._orders[tenant]

    def clear(self) -> None:
        """Take all out."""
        self._orders.clear()

    def _in_turn(self) -> list[str]:
        """The tenants that wait, those never served first, then those served least recently."""
        new = [tenant for tenant in self._orders if tenant not in self._served]
        return (
            new + [tenant for tenant in self._served if tenant in self._orders]
            if len(self._orders) > 1
            else [*self._orders]
        )
