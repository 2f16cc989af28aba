"""Who may see the inside of the system: a caller with an API key, or a machine of an allowed network."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.requests import Request

Network = IPv4Network | IPv6Network

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers of a proxy: the connection is then the proxy's, and says nothing of who asks."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR form with commas between; raises ValueError for one that is none."""
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def comes_from(request: Request, networks: Sequence[Network]) -> bool:
    """Whether the connection's own address is of one of these networks, and no proxy speaks for somebody else."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ip_address(request.client.host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
