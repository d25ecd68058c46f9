"""No request of ours reaches inside, however an address is spelled and whatever a name says."""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from receiving import Canary, canaries, receiving

from payloops.commands.public_addresses import is_allowed
from payloops.workflows_client.webhook_sender import Sender, open_sender

PUBLIC = ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "64:ff9b::1.1.1.1"]
SPECIAL = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
    *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
    *("192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1"),
    *("240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1.1.1.1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1"),
    *("2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:0101:0101::1", "2620:4f:8000::1"),
    *("3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1"),
    *("2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:7f00:1", "2606:4700::1111%lo", "4000::1"),
    *("not an address", ""),
]
ADDRESSES = ["127.0.0.1", "127.0.0.2", "::1"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, allow_loopback=False)


@pytest.mark.parametrize("address", SPECIAL)
def test_special_addresses_are_not(address: str) -> None:
    assert not is_allowed(address, allow_loopback=False)


@pytest.mark.parametrize("address", SPECIAL)
def test_allowing_loopback_allows_nothing_else(address: str) -> None:
    loopback = {"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"}
    assert is_allowed(address, allow_loopback=True) is (address in loopback)


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    """Listeners on loopback, and on this machine's own address where it has one that is private."""
    own = [address for address in _own_addresses() if not is_allowed(address, allow_loopback=True)]
    async with canaries(*ADDRESSES, *own[:1]) as listening:
        yield listening


def _own_addresses() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(entry[4][0]) for entry in found})


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with open_sender(allow_loopback=False, deadline=3) as opened:
        yield opened


async def send(sender: Sender, url: str) -> str | None:
    """The error, after a look at that there was no answer."""
    attempt = await sender.send(webhook_id="id", url=url, secrets=["s" * 32], turn=1, payload={"a": 1})
    assert attempt.status_code is None
    return attempt.error


HOSTS = [
    *("127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST.", "127.1", "127.0.1", "2130706433", "0x7f000001"),
    *("0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "0", "0.0.0.0", "0x0"),
    *("127。0。0。1", "１２７.0.0.1", "①②⑦.0.0.1", "%31%32%37.0.0.1", "user@127.0.0.1", "1.1.1.1@127.0.0.1"),  # noqa: RUF001
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[fe80::1%25lo]", "ip6-localhost"),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", HOSTS)
async def test_no_spelling_of_loopback_is_connected_to(
    sender: Sender, canary: Canary, host: str, scheme: str
) -> None:
    assert await send(sender, f"{scheme}://{host}:{canary.ports['127.0.0.1']}/hooks") is not None
    await asyncio.sleep(0.01)
    assert canary.connections == []


async def test_the_machines_own_private_address_is_not_connected_to(sender: Sender, canary: Canary) -> None:
    for address, port in canary.ports.items():
        host = f"[{address}]" if ":" in address else address
        assert await send(sender, f"http://{host}:{port}/") == "The address is not a public one"
    assert canary.connections == []


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/", "file:///etc/passwd", "unix:///run/x", "http://", "", "x"]
)
async def test_what_is_no_http_url_is_an_error_to_read(sender: Sender, url: str) -> None:
    assert await send(sender, url) is not None


def _record(address: str, port: int) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = (address, port, 0, 0) if ":" in address else (address, port)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)


@pytest.mark.parametrize(
    "records",
    [
        ["127.0.0.1"],
        ["::1", "127.0.0.1"],
        ["192.0.2.1", "127.0.0.1", "::1"],
        ["::ffff:127.0.0.1"],
        ["10.0.0.1", "169.254.169.254", "127.0.0.2", "127.0.0.1"],
    ],
)
async def test_every_record_of_a_name_is_looked_at(
    sender: Sender, canary: Canary, monkeypatch: pytest.MonkeyPatch, records: list[str]
) -> None:
    """The system's resolver is a third party: it says what the name's owner wants it to."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, port, **__: [_record(each, port) for each in records]
    )
    error = await send(sender, f"http://shop.example:{canary.ports['127.0.0.1']}/")
    assert error == "The address is not a public one"
    assert canary.connections == []


async def test_a_name_that_changes_its_answer_leads_nowhere_else(
    sender: Sender, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First public, then ours: what is connected to is what was looked at, as it is one and the same answer."""
    answers = itertools.cycle(["93.184.215.14", "127.0.0.1"])
    asked: list[str] = []

    def changing(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [_record(next(answers), port)]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    connected: list[Any] = []
    loop = asyncio.get_running_loop()

    async def sock_connect(_: socket.socket, address: Any) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "no network in tests")

    monkeypatch.setattr(loop, "sock_connect", sock_connect, raising=False)
    for _ in range(6):
        await send(sender, f"http://shop.example:{canary.ports['127.0.0.1']}/")
    assert len(asked) == 6
    assert set(connected) == {"93.184.215.14"}
    assert canary.connections == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(canary: Canary, status: int) -> None:
    target = f"http://127.0.0.1:{canary.ports['127.0.0.1']}/inside"

    def redirect(_: object) -> web.Response:
        return web.Response(status=status, headers={"Location": target})

    async with receiving(redirect) as endpoint, open_sender(allow_loopback=True) as sender:
        attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert (attempt.status_code, attempt.error) == (status, f"Answered {status}: redirects are not followed")
    assert canary.connections == []


async def test_proxy_variables_mean_nothing(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://127.0.0.1:{canary.ports['127.0.0.1']}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    assert os.environ["http_proxy"] == proxy
    async with receiving() as endpoint, open_sender(allow_loopback=True) as sender:
        attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert attempt.delivered
    assert canary.connections == []


async def test_loopback_is_reached_where_it_is_allowed(canary: Canary) -> None:
    """And the canaries sing when somebody comes."""
    async with open_sender(allow_loopback=True, deadline=3) as sender:
        for host in ("127.0.0.1", "127.0.0.2", "localhost"):
            await send(sender, f"http://{host}:{canary.ports['127.0.0.1']}/")
    assert len(canary.connections) >= 3
    async with receiving() as endpoint, open_sender(allow_loopback=True) as sender:
        attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert (attempt.status_code, attempt.error, attempt.answer) == (200, None, "thanks")
