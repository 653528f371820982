from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from bloomery.core.errors import ConfigError, WebError
from bloomery.web.fetch import Fetcher, FetchError
from bloomery.web.guard import Guard
from bloomery.web.urls import canonical

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fc00::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1",
]  # fmt: skip
NEVER = ["169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::", "ff02::1", "240.0.0.1", "255.255.255.255"]


@pytest.mark.parametrize("address", [*PRIVATE, *NEVER])
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert Guard().refusal(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_public_addresses_pass(address: str) -> None:
    assert Guard().refusal(ipaddress.ip_address(address)) is None


def test_allow_private_opens_private_networks_and_no_more() -> None:
    guard = Guard(allow_private=True)
    assert [a for a in PRIVATE if guard.refusal(ipaddress.ip_address(a))] == []
    assert [a for a in NEVER if not guard.refusal(ipaddress.ip_address(a))] == []
    assert Guard(allow_networks=("169.254.169.0/24",)).refusal(ipaddress.ip_address("169.254.169.254")) is None


@pytest.mark.parametrize("port", [22, 25, 53, 6379, 11211])
def test_ports_of_other_services_are_refused(port: int) -> None:
    with pytest.raises(WebError, match="not a web port"):
        Guard(allow_private=True).check_url(f"http://example.com:{port}/")


def test_bad_network_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="allow_networks"):
        Guard(allow_networks=("localhost",))


def get(url: str, guard: Guard | None = None, resolver: Any = None) -> bytes:
    async def main() -> bytes:
        async with Fetcher(guard or Guard(), "test", resolver=resolver) as fetcher:
            return (await fetcher.get(canonical(url))).body

    return asyncio.run(main())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
)
def test_every_spelling_of_the_own_machine_is_refused(site: Any, host: str) -> None:
    site.routes["/"] = b"secret"
    with pytest.raises(FetchError) as caught:
        get(f"http://{host}:{site.port}/")
    assert caught.value.kind == "refused_address"
    assert not site.log


class Rebinding(AbstractResolver):
    """A name server of an attacker: a public address when first asked, the victim's from then on."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> Any:
        address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        ]  # fmt: skip

    async def close(self) -> None:
        pass


def test_the_address_connected_to_decides_not_the_name(site: Any) -> None:
    site.routes["/"] = b"secret"
    with pytest.raises(FetchError) as caught:
        get(f"http://public.example:{site.port}/", resolver=Rebinding("127.0.0.1"))
    assert caught.value.kind == "refused_address"
    assert not site.log
    assert get(f"http://public.example:{site.port}/", Guard(allow_private=True), Rebinding("127.0.0.1")) == b"secret"
