"""Requests in the plainest form are answered from bytes to bytes, as those that go the usual way are."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial

import pytest
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from calling import Api, Merchant, running_api
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from multidict import CIMultiDictProxy
from uuid_utils.compat import uuid7

from payloops.daemons.listening import bind
from payloops.http import connections
from payloops.http.app import ROUTES, create_app
from payloops.http.connections import MOST_AHEAD, connection_factory, finish_requests
from payloops.http.early_refusals import LONGEST_HEAD, Head, read_head
from payloops.http.endpoint import endpoint
from payloops.http.middleware import frame
from payloops.http.plain_requests import Handler, PlainRoutes
from payloops.http.routing import Call, Route, route
from payloops.settings import Settings

ORDER = b'{"amount": 4999, "metadata": {"cart": "7"}, "externalId": "%s"}'


class Noted(PlainRoutes):
    """Notes what it takes."""

    def __init__(self, handlers: list[tuple[Route, Handler]]) -> None:
        super().__init__(handlers)
        self.taken = 0

    def find(self, head: Head) -> tuple[Handler, str] | None:
        found = super().find(head)
        self.taken += found is not None
        return found


class Server:
    """The API once more, over a listener of its own."""

    def __init__(self, port: int, routes: Noted, http: web.Server) -> None:
        self.port = port
        self.routes = routes
        self.http = http

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(60):
                yield reader, writer
        finally:
            writer.close()

    async def answers(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        """To what is sent in these parts, over a connection of its own."""
        async with self.connected() as (reader, writer):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.02)
            return await answer(reader)


@asynccontextmanager
async def serving(api: Api, *routes: Route) -> AsyncIterator[Server]:
    framed = frame(api.services)
    plain = Noted(
        [(each, partial(framed, handler=endpoint(each, api.services))) for each in (*ROUTES, *routes)]
    )
    app = create_app(api.services)
    for each in routes:
        app.router.add_route(each.method, each.path, endpoint(each, api.services))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None
    factory = connection_factory(runner.server, admission=api.services.admission, plain=plain)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = await asyncio.get_running_loop().create_server(factory, sock=listener)
    yield Server(port, plain, runner.server)
    server.close()
    await runner.cleanup()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next one."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    assert len(headers.pop("Date")) == len("Sat, 28 Nov 2026 21:00:00 GMT")
    return int(status.split()[1]), headers, await reader.readexactly(int(headers.get("Content-Length", 0)))


def key_of(merchant: Merchant) -> bytes:
    return b"X-API-Key: " + merchant.shop.headers["X-API-Key"].encode()


def token_of(merchant: Merchant) -> bytes:
    return b"Authorization: " + merchant.dashboard.headers["Authorization"].encode()


def request(method: str, path: str, *headers: bytes, body: bytes | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


async def test_the_answer_is_the_one_of_the_usual_way(api: Api, subtests: pytest.Subtests) -> None:
    merchant, other = await api.merchant(), await api.merchant()
    order, foreign = await merchant.order(), await other.order()
    key, mine, typed = key_of(merchant), b"X-Correlation-ID: mine", b"Content-Type: application/json"
    keyed, token = b"Idempotency-Key: once", token_of(merchant)
    new = ORDER % b"one"
    asked = [
        (200, request("GET", f"/v1/orders/{order}", key, mine)),
        (200, request("GET", f"/v1/orders/{order}", b"x-api-key:  " + key[11:] + b" ", mine, b"Accept: */*")),
        (200, request("GET", f"/v1/orders/{order}/events", key, mine)),
        (200, request("GET", "/v1/orders", key, mine)),
        (200, request("GET", f"/v1/orders/{order}", key, mine, b"Connection: keep-alive", body=b"ignored")),
        (404, request("GET", f"/v1/orders/{foreign}", key, mine)),
        (404, request("GET", f"/v1/orders/{uuid7()}", key, mine)),
        (401, request("GET", f"/v1/orders/{order}", mine)),
        (401, request("GET", f"/v1/orders/{order}", b"X-API-Key: sk_test_nobody", mine)),
        (201, request("POST", "/v1/orders", key, mine, typed, keyed, body=new)),
        (201, request("POST", "/v1/orders", key, mine, typed, keyed, body=new)),  # replayed
        (409, request("POST", "/v1/orders", key, mine, typed, keyed, body=ORDER % b"two")),
        (400, request("POST", "/v1/orders", key, mine, typed, body=b'{"amount": "many", "more": 1}')),
        (400, request("POST", "/v1/orders", key, mine, typed)),
        (415, request("POST", "/v1/orders", key, mine, b"Content-Type: text/plain", body=new)),
        (415, request("POST", "/v1/orders", key, mine, typed, b"Content-Encoding: br", body=new)),
        (400, request("POST", f"/v1/orders/{order}/capture", key, mine, typed, body=b"")),
        (200, request("GET", "/api/orders", token, mine)),
        (200, request("GET", f"/api/orders/{order}", token, mine)),
        (404, request("GET", f"/api/orders/{foreign}", token, mine)),
        (401, request("GET", "/api/orders", key, mine)),
        (404, request("DELETE", f"/api/api-keys/{uuid7()}", token, mine)),
    ]
    async with serving(api) as server:
        for status, sent in asked:
            with subtests.test(sent=sent):
                before = server.routes.taken
                plain = await server.answers(sent)
                assert server.routes.taken == before + 1
                usual = await server.answers(sent[:20], sent[20:])
                assert server.routes.taken == before + 1
                assert plain[0] == status
                assert plain[1]["X-Correlation-ID"] == "mine"
                if b"Idempotency-Key" in sent and status == 201:  # the other is the replay of the one
                    plain[1]["Idempotent-Replayed"] = "true"
                assert usual == plain


async def test_each_request_over_a_connection_is_its_own_senders(api: Api) -> None:
    merchant, other = await api.merchant(), await api.merchant()
    order, foreign = await merchant.order(), await other.order()
    mine, theirs = key_of(merchant), key_of(other)
    asked = [(200, order, mine), (200, order, mine), (404, foreign, mine), (404, order, theirs)]
    asked += [(200, foreign, theirs), (200, order, mine), (401, order, b"X-API-Key: sk_test_nobody")]
    async with serving(api) as server, server.connected() as (reader, writer):
        for status, id, key in asked:
            writer.write(request("GET", f"/v1/orders/{id}", key))
            assert (await answer(reader))[0] == status
        assert server.routes.taken == len(asked)


async def test_an_answer_without_a_body_has_no_length_either_way(api: Api) -> None:
    merchant = await api.merchant()
    issued = [await merchant.dashboard.post("/api/api-keys", {"name": "a"}) for _ in range(2)]
    one, two = (
        request(
            "DELETE", f"/api/api-keys/{each.json['apiKey']['id']}", token_of(merchant), b"X-Correlation-ID: a"
        )
        for each in issued
    )
    async with serving(api) as server:
        plain, usual = await server.answers(one), await server.answers(two[:20], two[20:])
        assert server.routes.taken == 1
    assert plain == usual
    assert (plain[0], "Content-Length" in plain[1]) == (204, False)


async def test_what_can_be_read_in_two_ways_or_is_asked_for_otherwise_goes_the_usual_way(api: Api) -> None:
    merchant = await api.merchant()
    order, key = await merchant.order(), key_of(merchant)
    path = f"/v1/orders/{order}"
    async with serving(api) as server:
        for sent in (
            request("HEAD", path, key),
            request("GET", path + "?", key),
            request("GET", path.upper().replace("/V1/ORDERS", "/v1/orders"), key),
            request("GET", path, key, b"Connection: close"),
            request("GET", path, key, b"Origin: https://shop.example"),
            request("GET", path, key, b"Expect: 100-continue"),
            request("GET", path, key, b"Proxy-Connection: close"),
            request("GET", path, key, key),
            request("GET", path, key).replace(b"Host: x", b"X: x"),
            request("GET", path, key, b"X-Long: " + b"x" * 5_000),
            request("GET", path, key).replace(b"HTTP/1.1", b"HTTP/1.0"),
            request("GET", "/v1/orders/{id}", key),
            request("GET", path, key) + request("GET", path, key),
        ):
            async with server.connected() as (reader, writer):
                writer.write(sent)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1."), sent
        assert server.routes.taken == 0


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "GETS"]
TARGETS = [
    "/v1/orders",
    "/v1/orders?a=b",
    "/v1/x#y",
    "//v1/",
    "/v1/%00",
    '/v1/\\"<>[]|^`{}',
    "*",
    "http://x/v1/",
]
HEADERS = [
    *(
        "Host: x",
        "host:y:80",
        "Content-Length: 3",
        "content-length:  03",
        "Content-Length: 3 ",
        "Content-Length:",
    ),
    *(
        "Content-Length: +3",
        "Content-Length: 3,3",
        "Content_Length: 3",
        "Content-Encoding: gzip",
        "X-A:",
        "X-A: ",
    ),
    *(
        "Transfer-Encoding: chunked",
        "Transfer_Encoding: chunked",
        "Upgrade: websocket",
        "Expect: 100-continue",
    ),
    *(
        "Connection: close",
        "connection:keep-alive",
        "Connection: Keep-Alive",
        "Connection: keep-alive, close",
    ),
    *(
        "Connection: upgrade",
        "Proxy-Connection: close",
        "X-API-Key: sk",
        "x-api-key:  sk ",
        "Sec-WebSocket-Key1: x",
    ),
    *("X-Correlation-ID: a", "x-correlation-id:b ", "X-Correlation-ID: a b"),
    *("X-A:\ta\t", "X-A : a", " X-A: a", "X-A: \xe9", "X\xe9: a"),
]
ODD = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b",",
            b"\x00",
            b"\x0b",
            b"\xa0",
            b"0",
            b"\r\n ",
            b"\r\n\r\n",
        )
    ]
) | st.binary(max_size=3)


@pytest.fixture(scope="module")
def parsing() -> Iterator[asyncio.AbstractEventLoop]:
    with closing(asyncio.new_event_loop()) as loop:
        yield loop


@hypothesis_settings(max_examples=3_000)
@given(
    method=st.sampled_from(METHODS),
    target=st.sampled_from(TARGETS),
    headers=st.lists(st.sampled_from(HEADERS), max_size=6),
    version=st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]),
    edits=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 2), ODD), max_size=3),
)
@example(method="POST", target="/v1/orders", headers=["Content-Length: 3"], version="HTTP/1.1", edits=[])
def test_whatever_is_read_here_is_read_the_same_by_aiohttp(
    parsing: asyncio.AbstractEventLoop,
    method: str,
    target: str,
    headers: list[str],
    version: str,
    edits: list[tuple[int, int, bytes]],
) -> None:
    sent = "\r\n".join([f"{method} {target} {version}", "Host: x", *headers, "", ""]).encode("latin-1")
    for place, cut, put in edits:
        at = place % len(sent)
        sent = sent[:at] + put + sent[at + cut :]
    head = read_head(sent)
    if head is None or head.lines.body_length > 100:
        assert edits or (method, headers) != ("POST", ["Content-Length: 3"])
        return
    body = b"x" * head.lines.body_length
    parser = HttpRequestParser(BaseProtocol(parsing), parsing, 2**16, auto_decompress=False)
    [(message, payload)], upgraded, tail = parser.feed_data(head.raw + body)
    assert (message.method, message.path, message.version) == (head.method, head.path, HttpVersion11)
    assert in_lower_case(message.headers) == in_lower_case(head.lines.headers)
    assert (message.chunked, message.upgrade, upgraded, tail) == (False, False, False, b"")
    assert (payload.is_eof(), payload.read_nowait()) == (True, body)
    if head.plain:
        assert not message.should_close
        assert head.lines.correlation in ("", message.headers.get("X-Correlation-ID"))


def test_a_long_head_is_not_kept() -> None:
    """Each of thousands of connections keeps the last that was read."""
    sent = request("GET", "/v1/orders", b"X-Long: " + b"x" * LONGEST_HEAD)
    too_much = len(sent) - LONGEST_HEAD
    head = read_head(sent.replace(b"x" * too_much, b"", 1))
    assert head is not None
    assert len(head.raw) == LONGEST_HEAD
    assert read_head(sent) is None
    longer = head.raw.replace(b"/orders", b"/orders2")
    assert read_head(longer, head) is None
    assert read_head(longer) is None


def in_lower_case(headers: CIMultiDictProxy[str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items()]


NO_HOSTS = [
    *(
        b"",
        b" ",
        b"a b",
        b"a,b",
        b"a/b",
        b"a@b",
        b"a?b",
        b"a:b",
        b"a:80:80",
        b"a:123456",
        b":80",
        b"[::1",
        b"::1",
    ),
    *(b"[::1]a", b"[x]", b"%zz", b"<a>", b"\xff", "\u212a".encode(), b"a;", b"http://a"),
]


async def test_a_host_header_that_names_no_host_is_refused_either_way(
    api: Api, subtests: pytest.Subtests
) -> None:
    sent = request("GET", "/v1/orders", key_of(await api.merchant()), b"X-Correlation-ID: mine")
    async with serving(api) as server:
        for host in NO_HOSTS:
            with subtests.test(host=host):
                wrong = sent.replace(b"Host: x", b"Host: " + host)
                plain, usual = await server.answers(wrong), await server.answers(wrong[:5], wrong[5:])
                assert plain == usual
                assert (plain[0], plain[1]["Connection"]) == (400, "close")
                [error] = json.loads(plain[2])["errors"]
                assert error["message"] == "Has a Host header that names no host"
        assert server.routes.taken == 0
        for twice in (b"Host: x\r\nHost: x", b"Host: x\r\nhost: y"):
            assert (await server.answers(sent.replace(b"Host: x", twice)))[0] == 400
        for host in (
            b"x",
            b"X.Example:3000",
            b"a_b-c.local.",
            b"127.0.0.1:80",
            b"[::1]",
            b"[FE80::1.2.3.4]:80",
            b"x:",
        ):
            with subtests.test(host=host):
                right = sent.replace(b"Host: x", b"Host: " + host)
                before = server.routes.taken
                plain, usual = await server.answers(right), await server.answers(right[:5], right[5:])
                assert (plain[0], server.routes.taken) == (200, before + 1)
                assert plain == usual


class Held:
    """Requests that are answered once they are let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let = asyncio.Event()
        self.ended = asyncio.Event()

        @route("GET", "/v1/held", auth="api_key", summary="Waits")
        async def held(_: Call[None]) -> bytes:
            self.begun.set()
            await self.let.wait()
            self.ended.set()
            return b'"held"'

        self.route: Route = held


async def test_what_is_sent_meanwhile_is_answered_after_it_in_order(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    order, key = await merchant.order(), key_of(merchant)
    more = [
        request("GET", f"/v1/orders/{order}", key, b"X-Correlation-ID: n-%d" % each) for each in range(1_000)
    ]
    assert sum(map(len, more)) > MOST_AHEAD + 2**16  # more than is taken and read ahead
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", "/v1/held", key, b"X-Correlation-ID: first"))
        await held.begun.wait()
        for each in more:
            writer.write(each)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        held.let.set()
        ids = [(await answer(reader))[1]["X-Correlation-ID"] for _ in range(1_001)]
        assert ids == ["first", *(f"n-{each}" for each in range(1_000))]


async def test_the_rest_of_a_request_that_was_begun_meanwhile_is_waited_for(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    order, key = await merchant.order(), key_of(merchant)
    next_one = request("GET", f"/v1/orders/{order}", key)
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", "/v1/held", key))
        await held.begun.wait()
        writer.write(next_one[:30])
        await asyncio.sleep(0.02)
        held.let.set()
        assert (await answer(reader))[2] == b'"held"'
        writer.write(next_one[30:])
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("size", [MOST_AHEAD + 1_000, 5 * MOST_AHEAD])
async def test_what_comes_after_more_than_is_read_ahead_is_read_all_the_same(api: Api, size: int) -> None:
    merchant, held = await api.merchant(), Held()
    body = b'{"amount": 1%b}' % (b" " * size)
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", "/v1/held", key_of(merchant)))
        await held.begun.wait()
        json_type = b"Content-Type: application/json"
        writer.write(request("POST", "/v1/orders", key_of(merchant), json_type, body=body))
        await asyncio.sleep(0.1)
        held.let.set()
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 201]
        writer.write(request("GET", "/v1/orders", key_of(merchant)))
        assert (await answer(reader))[0] == 200


async def test_who_leaves_before_the_answer_holds_up_nobody(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    order, key = await merchant.order(), key_of(merchant)
    async with serving(api, held.route) as server:
        async with server.connected() as (_, writer):
            writer.write(request("GET", "/v1/held", key))
            await held.begun.wait()
        await asyncio.sleep(0.02)
        held.let.set()
        await held.ended.wait()
        assert (await server.answers(request("GET", f"/v1/orders/{order}", key)))[0] == 200
        await asyncio.sleep(0)
        assert not api.services.admission.full


async def test_a_connection_that_failed_elsewhere_is_a_failure_of_ours_either_way(api: Api) -> None:
    """The frame takes it for a client that left, and leaves it to the connection, which knows better."""

    @route("GET", "/v1/broken", auth="api_key", summary="Cannot reach somebody")
    async def broken(_: Call[None]) -> bytes:
        raise ConnectionRefusedError("somebody is away")

    merchant = await api.merchant()
    sent = request("GET", "/v1/broken", key_of(merchant), b"X-Correlation-ID: mine")
    async with serving(api, broken) as server:
        with structlog.testing.capture_logs() as lines:
            plain, usual = await server.answers(sent), await server.answers(sent[:20], sent[20:])
        assert server.routes.taken == 1
    assert plain == usual
    assert (plain[0], plain[1]["Connection"], json.loads(plain[2])["code"]) == (
        500,
        "close",
        "internal_error",
    )
    assert [line["event"] for line in lines].count("http.escaped") == 2


async def test_a_place_is_kept_from_the_moment_it_arrives(settings: Settings) -> None:
    """Of two that arrive in the same turn of the event loop, and room for one, one is taken in."""
    async with running_api(settings.model_copy(update={"max_in_flight": 1})) as api:
        merchant, held = await api.merchant(), Held()
        key = key_of(merchant)
        async with serving(api, held.route) as server, server.connected() as one, server.connected() as two:
            for _, writer in (one, two):
                writer.write(request("GET", "/v1/held", key))
            await held.begun.wait()
            done, _ = await asyncio.wait(
                [asyncio.create_task(answer(reader)) for reader, _ in (one, two)],
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert [each.result()[0] for each in done] == [503]
            held.let.set()


@pytest.mark.parametrize(("room", "status"), [(1, 200), (0, 503)])
async def test_a_connection_may_be_idle_for_longer_than_a_head_may_take(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, room: int, status: int
) -> None:
    """After an answer as after a refusal."""
    monkeypatch.setattr(connections, "HEAD_DEADLINE", 0.3)
    async with (
        running_api(settings.model_copy(update={"max_in_flight": 1})) as api,
        AsyncExitStack() as stack,
    ):
        merchant = await api.merchant()
        sent = request("GET", f"/v1/orders/{await merchant.order()}", key_of(merchant))
        for _ in range(1 - room):
            stack.enter_context(api.services.admission.admit("work"))
        async with serving(api) as server, server.connected() as (reader, writer):
            for _ in range(2):
                writer.write(sent)
                assert (await answer(reader))[0] == status
                await asyncio.sleep(0.5)
            writer.write(sent[:20])
            assert await reader.read() == b""


async def test_a_connection_that_is_idle_for_too_long_ends_and_none_that_is_in_use(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEEPALIVE", 1.0)
    merchant, held = await api.merchant(), Held()
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", f"/v1/orders/{await merchant.order()}", key_of(merchant)))
        assert (await answer(reader))[0] == 200
        writer.write(request("GET", "/v1/held", key_of(merchant)))
        await held.begun.wait()
        await asyncio.sleep(1.2)
        held.let.set()
        assert (await answer(reader))[0] == 200
        assert await reader.read() == b""


async def test_who_took_an_answer_in_time_is_not_cut_off_later(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WRITE_DEADLINE", 0.1)
    merchant = await api.merchant()
    async with serving(api) as server, server.connected() as (reader, writer):
        for _ in range(2):
            writer.write(request("GET", "/v1/orders", key_of(merchant)))
            assert (await answer(reader))[0] == 200
            [connection] = server.http.connections
            connection.pause_writing()
            connection.resume_writing()
            await asyncio.sleep(0.2)


async def test_a_process_that_ends_waits_until_it_is_answered(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", "/v1/held", key_of(merchant)))
        await held.begun.wait()
        finishing = asyncio.create_task(finish_requests(server.http, seconds=60))
        await asyncio.sleep(0.1)
        assert not finishing.done()
        held.let.set()
        assert (await answer(reader))[0] == 200
        await finishing


async def test_a_process_that_ends_waits_a_while_for_requests_that_are_arriving(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = request("GET", "/health")
    async with serving(api) as server, server.connected() as (reader, writer):
        while not server.http.connections:
            await asyncio.sleep(0.01)
        finishing = asyncio.create_task(finish_requests(server.http, seconds=60))
        await asyncio.sleep(0.1)
        assert not finishing.done()
        writer.write(health)
        assert (await answer(reader))[0] == 200
        await asyncio.wait_for(finishing, 1)  # for no second request
        writer.write(health[:10])
        await asyncio.sleep(0.1)
        monkeypatch.setattr(connections, "ARRIVAL_SECONDS", 0.3)
        finishing = asyncio.create_task(finish_requests(server.http, seconds=60))
        await asyncio.sleep(0.1)
        assert not finishing.done()
        await asyncio.wait_for(finishing, 5)  # not for long


async def test_a_connection_ends_with_the_answer_once_the_process_is_to_end(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    key = key_of(merchant)
    async with serving(api, held.route) as server, server.connected() as (reader, writer):
        writer.write(request("GET", "/v1/held", key))
        await held.begun.wait()
        api.services.stopping.set()
        held.let.set()
        status, headers, body = await answer(reader)
        assert (status, headers["Connection"], body) == (200, "close", b'"held"')
        assert await reader.read() == b""


async def test_who_sends_on_while_he_is_answered_is_not_read_without_end(api: Api) -> None:
    merchant, held = await api.merchant(), Held()
    async with serving(api, held.route) as server, server.connected() as (_, writer):
        writer.write(request("GET", "/v1/held", key_of(merchant)))
        await held.begun.wait()
        writer.write(b"x" * 2**25)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
        held.let.set()
