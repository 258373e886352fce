"""Which IP addresses belong to the public internet, and so to nobody's private network."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
# Not for everybody, and not known as such to every version of Python.
_EXCEPT_V4: Final = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; a cloud has its metadata service there
    IPv4Network("192.88.99.0/24"),  # relays of the tunnels below
    IPv4Network("168.63.129.16/32"),  # Azure's own, which every virtual machine reaches and nobody else does
)
_EXCEPT_V6: Final = (
    IPv6Network("2001::/23"),  # protocol assignments, and tunnels that carry an IPv4 address
    IPv6Network("2002::/16"),  # likewise
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: str) -> bool:
    """Whether an address, in its usual form, is one of the public internet.

    Private, loopback, link-local, multicast, reserved and unspecified ones are not; nor is any other text.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        inner = _carried(parsed)
        if inner is None:
            return _is_public_v6(parsed)
        parsed = inner
    is_special = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _EXCEPT_V4)
    return parsed.is_global and not is_special


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is meant by a mapped or translated one."""
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def _is_public_v6(address: IPv6Address) -> bool:
    return address.is_global and address in _GLOBAL_UNICAST and not any(address in network for network in _EXCEPT_V6)
