"""Where the crawler may connect: public addresses and web ports only, unless the user names exceptions.

A crawler follows links that strangers wrote, so a page can try to make it talk to the machine it runs on or to the
network around it (server-side request forgery). Names are not enough to decide: DNS may answer differently the second
time it is asked. The guard therefore looks at the address a socket is about to connect to, every time, for pages,
redirects and robots.txt alike.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bloomery.core.errors import ConfigError, WebError
from bloomery.web.urls import hostname_and_port

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Below 1024 only the web's own ports: the others are mail, shells, name service. Above, the ports that the Fetch
# standard blocks ("bad port") and the usual databases, where an HTTP request line can be read as commands.
WEB_PORTS = frozenset({80, 443})
REFUSED_HIGH_PORTS = frozenset(
    {1719, 1720, 1723, 2049, 3306, 3659, 4045, 4190, 5060, 5061, 5432, 6000, 6379, 6566, *range(6665, 6670), 6679, 6697}
    | {10080, 11211, 27017}
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefusedError(OSError):
    """Raised inside the connector, which treats it as one address that cannot be connected to."""


@dataclass(frozen=True)
class Guard:
    """The policy. `allow_private` opens loopback and private networks; `allow_networks` names further exceptions.

    Link-local (where cloud metadata services live), multicast, unspecified and reserved addresses stay refused with
    `allow_private`; only `allow_networks`, e.g. `("169.254.10.0/24",)`, opens them.
    """

    allow_private: bool = False
    allow_networks: Sequence[str] = ()

    def __post_init__(self) -> None:
        try:
            networks = tuple(ipaddress.ip_network(network) for network in self.allow_networks)
        except ValueError as error:
            raise ConfigError(str(error), where="allow_networks", fix='use networks such as "10.0.0.0/8"') from error
        object.__setattr__(self, "_networks", networks)

    def check_url(self, url: str) -> None:
        """Raise `WebError` for a canonical URL whose port or literal address is refused; names pass until connect."""
        name, port = hostname_and_port(url)
        reason = self.port_refusal(port)
        with contextlib.suppress(ValueError):  # a name: looked at when it has been resolved
            reason = reason or self.refusal(ipaddress.ip_address(name))
        if reason:
            raise WebError(reason, where=url, fix="private addresses need allow_private")

    def refusal(self, address: IPAddress) -> str | None:
        """Why this address is refused, or None."""
        if any(address in network for network in self._networks if network.version == address.version):  # type: ignore[attr-defined]
            return None
        inner = _embedded(address)
        if inner is not None:
            return self.refusal(inner)
        if address.is_global and not address.is_multicast:
            return None
        name = _range_name(address)
        return None if self.allow_private and name in ("loopback", "private") else f"{address} is a {name} address"

    @staticmethod
    def port_refusal(port: int) -> str | None:
        """Why this port is refused, or None."""
        if port in WEB_PORTS or (port >= 1024 and port not in REFUSED_HIGH_PORTS):
            return None
        return f"port {port} is not a web port"

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one resolved address; the connector calls this right before it connects to exactly that."""
        family, kind, protocol, _, address = info
        reason = self.refusal(ipaddress.ip_address(address[0].partition("%")[0])) or self.port_refusal(address[1])
        if reason:
            raise AddressRefusedError(reason)
        return socket.socket(family, kind, protocol)


def _embedded(address: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for: mapped, 6to4, Teredo, NAT64, IPv4-compatible."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    value = int(address)
    if address in _NAT64 or 0xFFFF < value < 1 << 32:
        return ipaddress.IPv4Address(value & 0xFFFFFFFF)
    return None


def _range_name(address: IPAddress) -> str:
    for name in ("unspecified", "loopback", "link_local", "multicast", "reserved"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    return "private"
