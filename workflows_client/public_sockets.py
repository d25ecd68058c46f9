"""Sockets that connect to public addresses only (`commands/public_addresses.py`), whatever a webhook's URL resolves
to.
"""

import socket

from aiohappyeyeballs import AddrInfoType

from payloops.commands.public_addresses import is_allowed


class AddressRefused(OSError):
    """A webhook was to be sent to an address outside the public internet.

    The message does not name the address: the merchant reads it, and must not learn what our host names resolve to.
    """

    def __init__(self, address: str) -> None:
        super().__init__("The address is not a public one")
        self.address = address


class PublicSockets:
    """Makes the sockets of an aiohttp connector, for allowed addresses only.

    The check is here and not in a resolver, because this is called for every connection, with the very address that the
    socket is connected to next: also for IP literals, which no resolver sees, and for each record of a name.
    """

    def __init__(self, *, allow_loopback: bool) -> None:
        self._allow_loopback = allow_loopback

    def __call__(self, addr_info: AddrInfoType) -> socket.socket:
        """
        Raises:
            AddressRefused: no socket was made.
        """
        family, kind, protocol, _, address = addr_info
        host = str(address[0])
        if family not in (socket.AF_INET, socket.AF_INET6) or not is_allowed(
            host, allow_loopback=self._allow_loopback
        ):
            raise AddressRefused(host)
        return socket.socket(family=family, type=kind, proto=protocol)
