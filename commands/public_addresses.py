"""Which IP addresses webhooks may be sent to: public ones only.

The rule is a list of what is allowed: IPv4 outside every special range, and IPv6 in 2000::/3, the only block from which
public addresses are assigned, outside the special ranges in it (IANA's "Special-Purpose Address Registry" of each).
IPv6 addresses that embed an IPv4 address are judged by that.
"""

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

SPECIAL_IPV4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; clouds' own services
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own service of every virtual machine
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
]
PUBLIC_IPV6 = IPv6Network("2000::/3")
SPECIAL_IPV6 = [
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]
NAT64 = IPv6Network("64:ff9b::/96")
ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""Bits 64 to 95 of an address that ends in an IPv4 address (RFC 5214)."""
LOOPBACK_IPV4 = IPv4Network("127.0.0.0/8")
LOOPBACK_IPV6 = IPv6Address("::1")


def is_allowed(text: str, *, allow_loopback: bool) -> bool:
    """Whether a webhook may be sent to an address.

    Args:
        text: as a socket takes it: dotted decimals or IPv6, a zone after `%` included.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _ipv4_is_allowed(address, allow_loopback=allow_loopback)
    carried = _carried_by(address)
    if carried is not None:
        return _ipv4_is_allowed(carried, allow_loopback=allow_loopback)
    if address == LOOPBACK_IPV6:
        return allow_loopback
    return (
        address.scope_id is None
        and address in PUBLIC_IPV6
        and not any(address in network for network in SPECIAL_IPV6)
        and (int(address) >> 32) & 0xFFFF_FFFF not in ISATAP
    )


def _ipv4_is_allowed(address: IPv4Address, *, allow_loopback: bool) -> bool:
    if address in LOOPBACK_IPV4:
        return allow_loopback
    return address.is_global and not any(address in network for network in SPECIAL_IPV4)


def _carried_by(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a connection to this one ends at."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
