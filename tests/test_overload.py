"""More requests than a process can take: refused as they arrive, and answered as any other refusal."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest
from aiohttp import web
from calling import Api, Merchant, running_api
from masking import CARD
from prometheus_client import REGISTRY

from payloops.daemons.listening import ACCEPTED_AT_ONCE, accept, bind
from payloops.http import connections
from payloops.http.admission import Admission
from payloops.http.app import ROUTES, create_app
from payloops.http.connections import Connection, connection_factory
from payloops.http.early_refusals import read_head
from payloops.http.request_metrics import hand_over
from payloops.settings import Settings

BODY = b'{"amount": 1}'
REFUSED_EARLY = ("payloops_http_requests_total", {"method": "POST", "route": "none", "status": "503"})


def request(merchant: Merchant, *headers: bytes, body: bytes = BODY) -> bytes:
    key = merchant.shop.headers["X-API-Key"].encode()
    lines = [b"POST /v1/orders HTTP/1.1", b"Host: x", b"X-API-Key: " + key, b"Content-Type: application/json"]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), *headers, b"", body])


@asynccontextmanager
async def connected(api: Api) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next one."""
    async with asyncio.timeout(10):
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return int(status.split()[1]), headers, await reader.readexactly(int(headers["Content-Length"]))


def refused_early() -> float:
    hand_over()
    return REGISTRY.get_sample_value(*REFUSED_EARLY) or 0.0


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings.model_copy(update={"max_in_flight": 1})) as api:
        yield api


async def test_who_is_refused_early_is_told_what_everybody_is_told(api: Api) -> None:
    merchant = await api.merchant()
    sent = request(merchant, b"X-Correlation-ID:  mine-1 ")
    async with connected(api) as (reader, writer), connected(api) as (other_reader, other):
        with api.services.admission.admit("work"):
            before = refused_early()
            writer.write(sent)
            early = await answer(reader)
            assert refused_early() == before + 1
            other.write(sent[:40])  # nobody can tell yet what this is
            await asyncio.sleep(0.05)
            other.write(sent[40:])
            usual = await answer(other_reader)
            assert refused_early() == before + 1
    early[1].pop("Date")
    usual[1].pop("Date")
    assert early == usual
    assert (early[0], early[1]["X-Correlation-ID"]) == (503, "mine-1")


async def test_who_was_refused_early_is_served_over_the_same_connection_later(api: Api) -> None:
    merchant = await api.merchant()
    sent = request(merchant)
    async with connected(api) as (reader, writer):
        for _ in range(3):
            with api.services.admission.admit("work"):
                before = refused_early()
                writer.write(sent)
                assert (await answer(reader))[0] == 503
                assert refused_early() == before + 1
            writer.write(sent[:-5])  # the body's end comes after its head
            await asyncio.sleep(0.05)
            writer.write(sent[-5:])
            assert (await answer(reader))[0] == 201


async def test_a_refusal_keeps_a_connection_open_for_as_long_as_any_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    merchant = await api.merchant()
    monkeypatch.setattr(connections, "HEAD_DEADLINE", 1.0)
    monkeypatch.setattr(connections, "KEEPALIVE", 2.5)
    async with connected(api) as (reader, writer):
        for _ in range(2):
            with api.services.admission.admit("work"):
                before = refused_early()
                writer.write(request(merchant))
                assert (await answer(reader))[0] == 503
                assert refused_early() == before + 1
            await asyncio.sleep(1.5)
        writer.write(request(merchant))
        assert (await answer(reader))[0] == 201


async def test_a_connection_that_stays_silent_after_an_early_refusal_is_closed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    merchant = await api.merchant()
    monkeypatch.setattr(connections, "KEEPALIVE", 0.3)
    async with connected(api) as (reader, writer):
        with api.services.admission.admit("work"):
            before = refused_early()
            writer.write(request(merchant))
            assert (await answer(reader))[0] == 503
            assert refused_early() == before + 1
        async with asyncio.timeout(9):
            assert await reader.read() == b""


async def test_a_client_that_does_not_read_refusals_is_disconnected_and_fills_no_memory(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is told to buffer little for it, so that the process soon has to."""
    sent = request(await api.merchant())
    monkeypatch.setattr(connections, "WRITE_DEADLINE", 2.0)
    admission, loop = api.services.admission, asyncio.get_running_loop()
    runner = web.AppRunner(create_app(api.services), access_log=None)
    await runner.setup()
    assert runner.server is not None
    with bind("127.0.0.1", 0) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        await loop.create_server(connection_factory(runner.server, admission=admission), sock=listener)
        await loop.sock_connect(client, listener.getsockname())
        while not runner.server.connections:
            await asyncio.sleep(0)
        [connection] = runner.server.connections
        most, before = 0, refused_early()

        async def send() -> None:
            nonlocal most
            while True:
                await loop.sock_sendall(client, sent)
                for _ in range(20):  # in which it is refused, before it sends the next one
                    await asyncio.sleep(0)
                if connection.transport is not None:
                    most = max(most, connection.transport.get_write_buffer_size())

        with admission.admit("work"), pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), 20)
        assert refused_early() > before + 50
        assert 64 * 1024 < most < 72 * 1024  # asyncio's limit, and an answer or two
        assert admission.announced == 0
        async with asyncio.timeout(20):
            while runner.server.connections:
                await asyncio.sleep(0.01)
    await runner.cleanup()


async def test_each_of_several_requests_sent_ahead_has_its_answer_while_nobody_can_be_taken_in(
    api: Api,
) -> None:
    merchant = await api.merchant()
    async with connected(api) as (reader, writer):
        with api.services.admission.admit("work"):
            writer.write(request(merchant) * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert [(await answer(reader))[0] for _ in range(4)] == [503, 503, 503, 200]
        writer.write(request(merchant))
        assert (await answer(reader))[0] == 201


async def test_a_body_in_chunks_that_looks_like_a_request_is_a_body(api: Api) -> None:
    merchant = await api.merchant()
    inner = request(merchant)
    head = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    async with connected(api) as (reader, writer):
        with api.services.admission.admit("work"):
            writer.write(chunked[: len(head)])
            await asyncio.sleep(0.05)
            writer.write(chunked[len(head) :])
            assert (await answer(reader))[0] == 503
            assert await reader.read() == b""


async def test_a_card_number_sent_as_correlation_id_is_not_echoed(api: Api) -> None:
    merchant = await api.merchant()
    async with connected(api) as (reader, writer):
        with api.services.admission.admit("work"):
            writer.write(request(merchant, b"X-Correlation-ID: " + CARD.encode()))
            status, headers, body = await answer(reader)
    assert status == 503
    assert CARD not in headers["X-Correlation-ID"]
    assert CARD.encode() not in body


async def test_browsers_elsewhere_are_told_that_they_may_read_the_refusal(settings: Settings) -> None:
    shop = "https://shop.example"
    configured = settings.model_copy(update={"max_in_flight": 1, "cors_origins": (shop,)})
    async with running_api(configured) as api:
        merchant = await api.merchant()
        with api.services.admission.admit("work"):
            refused = await merchant.shop.get("/v1/orders", Origin=shop)
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (503, shop)


async def test_of_many_who_come_at_once_those_without_a_place_are_refused_as_they_arrive(
    settings: Settings,
) -> None:
    places, comers = 3, 20
    async with running_api(settings.model_copy(update={"max_in_flight": places})) as api:
        merchant = await api.merchant()
        async with AsyncExitStack() as stack:
            pairs = [await stack.enter_async_context(connected(api)) for _ in range(comers)]
            before = refused_early()
            for _, writer in pairs:
                writer.write(request(merchant))
            statuses = [(await answer(reader))[0] for reader, _ in pairs]
        assert sorted(statuses) == places * [201] + (comers - places) * [503]
        assert refused_early() == before + comers - places
        assert api.services.admission.announced == 0


class FastClient(asyncio.Transport):
    """Sends the next request as soon as it is given an answer, before anything else happens in the process."""

    def __init__(self, *requests: bytes) -> None:
        super().__init__({"socket": socket.socket(socket.AF_UNIX), "peername": "/x"})
        self._requests = list(requests)
        self.connection: Connection
        self.answers: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers.append(bytes(data))
        self.send_next()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def send_next(self) -> None:
        if self._requests:
            asyncio.get_running_loop().call_soon(self.connection.data_received, self._requests.pop(0))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is there to be closed but the socket."""
        self.get_extra_info("socket").close()


async def test_who_sends_the_next_request_at_once_is_refused_as_it_arrives() -> None:
    admission = Admission(limit=1)
    busy = ExitStack()
    asked = []

    async def handle(asking: web.BaseRequest) -> web.Response:
        asked.append(asking.path)
        busy.enter_context(admission.admit("work"))  # from now on there is no place
        return web.Response(body=b"served")

    server = web.Server(handle)
    sent = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    client = FastClient(sent, sent, sent)
    client.connection = connection_factory(server, admission=admission)()
    client.connection.connection_made(client)
    client.send_next()
    async with asyncio.timeout(10):
        while len(client.answers) < 3:
            await asyncio.sleep(0)
    assert [answer[9:12] for answer in client.answers] == [b"200", b"503", b"503"]
    assert asked == ["/v1/orders"]
    client.connection.connection_lost(None)
    client.close()
    busy.close()
    await server.shutdown(1.0)


async def test_who_goes_away_before_he_is_asked_in_keeps_nobodys_place(api: Api) -> None:
    merchant = await api.merchant()
    for _ in range(5):
        async with connected(api) as (_, writer):
            writer.write(request(merchant))
            await writer.drain()
            writer.transport.abort()
    async with asyncio.timeout(10):
        while (await merchant.shop.post("/v1/orders", {"amount": 1})).status != 201:
            await asyncio.sleep(0.01)
    assert api.services.admission.announced == 0


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 1", b"Content-Length: 1"),
        (b"Content-Length: 1", b"content-length: 2"),
        (b"Content-Length: +1",),
        (b"Content-Length: 1, 1",),
        (b"Content-Length : 1",),
        (b"X: a\r\n Content-Length: 1",),
        (b"X: a\nContent-Length: 1",),
        (b"X: a\rContent-Length: 1",),
        (b"X: \0",),
        (b"X: \x7f",),
        (b"X: \xff",),
        (b"Transfer-Encoding: chunked",),
        (b"transfer-encoding:chunked",),
        (b"Upgrade: websocket",),
        (b"Expect: 100-continue",),
        (b"Host: y",),
        (b"Content-Type: application/json", b"content-type: text/plain"),
        (b"X-API-Key: one", b"X-API-Key: two"),
        (b"X: a\t",),
        (b"Content-Length: 1\t",),
        (b"Sec-WebSocket-Key1: x",),
        tuple(b"X-%d: x" % each for each in range(128)),
    ],
)
def test_a_head_that_others_might_read_in_another_way_is_left_to_the_parser(lines: Sequence[bytes]) -> None:
    assert read_head(b"\r\n".join([b"POST /v1/orders HTTP/1.1", b"Host: x", *lines, b"", b""])) is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/orders HTTP/1.1\r\nX: a\r\n\r\n",
        b"GET /v1/orders HTTP/1.0\r\nHost: x\r\n\r\n",
        b"PRI /v1/orders HTTP/1.1\r\nHost: x\r\n\r\n",
        b" GET /v1/orders HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nGET /v1/orders HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/orders /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://y/v1/orders HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/orders HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /v1/orders HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /v1/orders HTTP/1.1\r\nHost: x:port\r\n\r\n",
        b"GET /v1/orders HTTP/1.1\r\nX-Host: x\r\n\r\n",
    ],
)
def test_a_head_that_is_none_to_others_is_left_to_the_parser(head: bytes) -> None:
    assert read_head(head) is None


def test_a_head_is_read_the_same_whatever_came_before() -> None:
    one = b"Host: x\r\nX-API-Key: one\r\nContent-Length: 2\r\n"
    all_lines = [
        one,
        one.replace(b": one", b": two"),
        one + b"Expect: 100-continue\r\n",
        one[:9],
        b"",
        one[:-1],
    ]
    all_lines += [one + b"Origin: https://shop.example\r\n", one.replace(b": 2", b": 3")]
    heads = [
        line + b"\r\n" + lines + b"\r\n{}" for line in (b"GET /v1/a HTTP/1.1", b"a") for lines in all_lines
    ]
    for before in filter(None, map(read_head, heads)):
        for each in heads:
            read, alone = read_head(each, before), read_head(each)
            assert (read is None) == (alone is None)
            if read is not None and alone is not None:
                assert read[:4] == alone[:4]
                assert read.lines.raw == alone.lines.raw
                assert read.lines.headers == alone.lines.headers
                assert read.lines.body_length == alone.lines.body_length


@pytest.mark.parametrize(
    ("line", "header"),
    [
        (b"GET /health HTTP/1.1", b"Accept: */*"),
        (b"HEAD /v1/orders HTTP/1.1", b"Accept: */*"),
        (b"OPTIONS /v1/orders HTTP/1.1", b"Accept: */*"),
        (b"GET /checkout/1 HTTP/1.1", b"Accept: */*"),
        (b"GET /v1/orders HTTP/1.1", b"Origin: https://shop.example"),
        (b"GET /v1/orders HTTP/1.1", b"Connection: close"),
        (b"GET /v1/orders HTTP/1.1", b"Proxy-Connection: close"),
        (b"POST /v1/orders/1/pay HTTP/1.1", b"Prefer: wait=30"),
    ],
)
def test_what_has_an_answer_of_its_own_is_not_refused_early(line: bytes, header: bytes) -> None:
    head = read_head(line + b"\r\nHost: x\r\n" + header + b"\r\n\r\n")
    assert head is not None
    assert not head.plain


def test_no_route_that_is_always_answered_or_has_pages_is_refused_early() -> None:
    refused = {
        route
        for route in ROUTES
        if (head := read_head(f"{route.method} {route.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
        is not None
        and head.plain
    }
    assert {route.path for route in refused} >= {"/v1/orders", "/api/orders", "/webhooks/stripe"}
    assert all(route.sheds and not route.page for route in refused)


async def test_more_who_connect_than_are_accepted_at_once_are_all_served_until_the_end() -> None:
    class Greeting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"welcome")
            transport.close()

    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    acceptors = await accept(listener, Greeting)
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", port) for _ in range(3 * ACCEPTED_AT_ONCE))
    )
    for reader, writer in opened:
        assert await reader.read() == b"welcome"
        writer.close()
    for acceptor in acceptors:
        acceptor.close()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
