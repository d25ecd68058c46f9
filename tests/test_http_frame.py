"""What holds for every request, whatever the route."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from calling import Api, running_api, with_routes
from masking import CARD
from psycopg_pool import AsyncConnectionPool
from structlog.typing import EventDict
from uuid_utils.compat import uuid7

from payloops.daemons import probes
from payloops.events.event_store import EventStore
from payloops.http import connections, endpoint
from payloops.http.app import ROUTES
from payloops.http.request_context import merge_request
from payloops.http.routing import Call, route
from payloops.settings import Settings


async def exchange(api: Api, sent: bytes, *, seconds: float = 60.0) -> bytes:
    """What comes back for these bytes until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        writer.close()


async def test_every_refusal_is_a_problem(subtests: pytest.Subtests, api: Api) -> None:
    for method, path, status, code in [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/orders/", 404, "not_found"),
        ("DELETE", "/v1/orders", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/orders", 405, "method_not_allowed"),
        ("GET", "/v1/orders", 401, "unauthorized"),
        ("GET", "/api/api-keys", 401, "unauthorized"),
        ("POST", "/api/auth/login", 400, "validation_error"),
    ]:
        with subtests.test(method=method, path=path, status=status, code=code):
            answer = await api.anyone.call(method, path)
            assert (answer.status, answer.code) == (status, code)
            assert ("Allow" in answer.headers) == (status == 405)
            assert ("WWW-Authenticate" in answer.headers) == (status == 401)
            remedies = {404: "GET /openapi.json", 405: answer.headers.get("Allow", "-")}
            assert remedies.get(status, "") in answer.json["message"]


async def test_a_body_of_more_than_a_megabyte_is_refused(api: Api) -> None:
    fits = await api.anyone.call("POST", "/api/auth/login", data=b" " * (1024 * 1024))
    too_large = await api.anyone.call("POST", "/api/auth/login", data=b" " * (1024 * 1024 + 1))
    assert (fits.code, too_large.status, too_large.code) == ("validation_error", 413, "payload_too_large")


@pytest.mark.parametrize("asks", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(api: Api, asks: bytes) -> None:
    head = (
        b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    answer = await exchange(api, head + asks + b"Content-Length: 1048577\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"payload_too_large"' in answer


async def test_only_plain_json_is_read(subtests: pytest.Subtests, api: Api) -> None:
    for headers in [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ]:
        with subtests.test(headers=headers):
            answer = await api.anyone.call("POST", "/api/auth/login", data=b"{}", headers=headers)
            assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_a_body_of_nothing_but_jsons_white_space_is_none(subtests: pytest.Subtests, api: Api) -> None:
    shop = (await api.merchant()).shop
    for data, status in ((b" \t\r\n", 200), (b"\x0c", 400), (b"\x0b", 400), ("\u00a0".encode(), 400)):
        with subtests.test(data=data):
            order = (await shop.post("/v1/orders", {"amount": 1})).json
            paid = await shop.call(
                "POST",
                f"/v1/orders/{order['id']}/pay",
                data=data,
                headers={"Content-Type": "application/json"},
            )
            assert paid.status == status


async def test_what_is_not_http_is_answered_with_a_problem(subtests: pytest.Subtests, api: Api) -> None:
    for sent in [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n",
        (
            b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        ),
    ]:
        with subtests.test(sent=sent):
            head, _, body = (await exchange(api, sent)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), head
            assert b"application/problem+json" in head
            assert json.loads(body)["code"] == "validation_error"


@pytest.mark.parametrize(
    "version",
    [b" HTTP/2.0", b" HTTP/0.9", b" HTTP/1.2", b" HTTP/3.0", b" HTTP/11", b" http/1.1", b" SHTTP/1.1", b""],
)
async def test_a_version_other_than_1_0_and_1_1_is_refused_in_1_1(api: Api, version: bytes) -> None:
    head, _, body = (await exchange(api, b"GET /health" + version + b"\r\nHost: x\r\n\r\n")).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 400 ")
    [error] = json.loads(body)["errors"]
    assert error["message"] == "Has a request line that does not end in HTTP/1.0 or HTTP/1.1"


async def test_version_1_0_needs_no_host(api: Api) -> None:
    assert (await exchange(api, b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    "target", [b"http://xn--/health", b"http:///health", b"http://[/health", b"*", b"x:80"]
)
async def test_a_target_that_is_no_path_and_names_no_host_is_refused(api: Api, target: bytes) -> None:
    """aiohttp fails to decode the first one and would leave the connection open for ever, without an answer."""
    answer = await exchange(api, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Has a target that is no path, nor a URL with a host" in answer
    assert (await api.anyone.get("/health")).status == 200


async def test_what_follows_a_chunked_body_is_no_header_of_the_next_request(api: Api) -> None:
    """Behind a proxy, the next request on the connection may be anybody's."""
    merchant = await api.merchant()
    key = b"X-API-Key: " + merchant.shop.headers["X-API-Key"].encode() + b"\r\n"
    one = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + key
    one += b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"amount": 1}\r\n0\r\nX-Trailer: x\r\n' + key + b"\r\n"
    answers = await exchange(api, one + b"GET /v1/orders HTTP/1.1\r\nHost: x\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"201"]
    assert b"\r\nConnection: close\r\n" in answers


async def test_what_follows_a_refused_connect_is_no_request(api: Api) -> None:
    inner = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
    assert re.findall(rb"HTTP/1.1 (\d+)", await exchange(api, head + inner)) == [b"404"]


async def test_a_body_whose_framing_breaks_on_the_way_is_refused_at_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BODY_DEADLINE", 60.0)
    head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunk = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}"
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    async with asyncio.timeout(30):
        writer.write(head + b"Expect: 100-continue\r\n" + chunk)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"XX\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
    assert b"The body is not framed as its headers say" in answer
    writer.close()


@pytest.mark.parametrize("line", [b"POST /api/auth/login", b"GET /health", b"GET /nowhere", b"GET /support"])
@pytest.mark.parametrize("codings", [b"gzip, chunked", b"GZIP,chunked", b"identity, chunked", b"x ,chunked"])
async def test_a_transfer_coding_that_is_not_understood_is_refused(
    api: Api, line: bytes, codings: bytes
) -> None:
    head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: " + codings
    answer = await exchange(api, head + b"\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Has a Transfer-Encoding other than chunked" in answer


async def test_chunked_is_understood_however_it_is_written(api: Api) -> None:
    for codings in (b"chunked", b"Chunked", b", chunked "):
        head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        answer = await exchange(
            api, head + b"Transfer-Encoding: " + codings + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        assert b'"field":"email"' in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_too_long_is_told_from_what_is_not_http(api: Api, sent: bytes) -> None:
    assert b"Has a line of more than 8,190 bytes" in await exchange(api, sent)


async def test_who_asks_before_sending_a_body_is_told_to_send_it(subtests: pytest.Subtests, api: Api) -> None:
    head = b"POST /api/auth/login %s\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    for version, expectation, begins in (
        (b"HTTP/1.1", b"100-continue", b"HTTP/1.1 100 "),
        (b"HTTP/1.0", b"100-continue", b"HTTP/1.0 400 "),  # who sent this knows of no such answer
        (b"HTTP/1.1", b"miracles", b"HTTP/1.1 400 "),
    ):
        with subtests.test(version=version, expectation=expectation):
            asks = head % version + b"Expect: %s\r\nContent-Length: 2\r\n\r\n{}" % expectation
            answer = await exchange(api, asks)
            assert answer.startswith(begins)
            assert b"validation_error" in answer
            assert b"aiohttp" not in answer


@pytest.mark.parametrize("expectation", [b"miracles", b"\xff"])
async def test_an_unknown_expectation_changes_no_answer(
    api: Api, expectation: bytes, subtests: pytest.Subtests
) -> None:
    for line in (b"GET /nothing", b"DELETE /v1/orders", b"OPTIONS *", b"GET /health"):
        with subtests.test(line=line):
            head = line + b" HTTP/1.1\r\nHost: x\r\nX-Correlation-ID: mine\r\nConnection: close\r\n"
            usual = await exchange(api, head + b"\r\n")
            answer = await exchange(api, head + b"Expect: %s\r\n\r\n" % expectation)
            assert answer.partition(b"\r\n")[0] == usual.partition(b"\r\n")[0]
            assert b"X-Correlation-ID: mine" in answer
            assert b"aiohttp" not in answer


async def test_a_correlation_id_is_taken_where_it_fits_and_echoed(api: Api) -> None:
    answer = await api.anyone.get("/health", **{"X-Correlation-ID": "Order-7_a.b"})
    assert answer.headers["X-Correlation-ID"] == answer.json["correlationId"] == "Order-7_a.b"


async def test_a_correlation_id_is_made_where_the_given_one_does_not_fit(
    subtests: pytest.Subtests, api: Api
) -> None:
    for given in ["", "a b", "x" * 129, "ü", CARD]:
        with subtests.test(given=given):
            answer = await api.anyone.get("/health", **{"X-Correlation-ID": given})
            assert re.fullmatch("[0-9a-f-]{36}", answer.headers["X-Correlation-ID"])


async def test_the_correlation_id_is_stored_with_the_events(api: Api, store: EventStore) -> None:
    merchant = await api.merchant()
    await merchant.shop.post("/v1/orders", {"amount": 1}, **{"X-Correlation-ID": "mine"})
    [recorded] = await store.read(after=await store.head() - 1, limit=1)
    assert recorded.event.correlation_id == "mine"
    assert recorded.event.actor.startswith("api_key:")


async def test_every_answer_has_security_headers_and_no_versions(api: Api) -> None:
    for answer in (await api.anyone.get("/health"), await api.anyone.get("/nowhere")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Server"] == "payloops"


async def test_an_answer_is_the_same_however_its_connection_goes_on(api: Api) -> None:
    """It is written in one piece where the connection stays, and by aiohttp where there is more to say."""
    merchant = await api.merchant()
    path = f"/v1/orders/{await merchant.order()}"
    key = f"Host: x\r\nX-API-Key: {merchant.shop.headers['X-API-Key']}\r\nX-Correlation-ID: mine\r\n"

    async def answer(method: str, version: str, more: str) -> tuple[dict[str, str], bytes]:
        last = f"GET {path} HTTP/1.1\r\n{key}Connection: close\r\n\r\n" if "close" not in more else ""
        sent = f"{method} {path} HTTP/{version}\r\n{key}{more}\r\n{last}"
        head, _, rest = (await exchange(api, sent.encode())).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        assert status == f"HTTP/{version} 200 OK"
        headers = dict(line.split(": ", 1) for line in lines)
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers.pop("Date"))
        return headers, rest[: 0 if method == "HEAD" else int(headers["Content-Length"])]

    headers, body = await answer("GET", "1.1", "")
    assert json.loads(body)["id"] == path.rsplit("/", maxsplit=1)[-1]
    assert (headers["X-Correlation-ID"], headers["Content-Type"]) == ("mine", "application/json")
    assert await answer("GET", "1.1", "Connection: close\r\n") == ({**headers, "Connection": "close"}, body)
    assert await answer("GET", "1.0", "Connection: close\r\n") == (headers, body)
    assert await answer("GET", "1.0", "Connection: keep-alive\r\n") == (
        {**headers, "Connection": "keep-alive"},
        body,
    )
    assert await answer("HEAD", "1.1", "") == (headers, b"")


async def test_only_named_origins_may_call_from_browsers(settings: Settings) -> None:
    configured = settings.model_copy(update={"cors_origins": ("https://dashboard.example",)})
    async with running_api(configured) as api:
        allowed = await api.anyone.get("/v1/orders", Origin="https://dashboard.example")
        other = await api.anyone.get("/v1/orders", Origin="https://dashboard.example.evil.example")
        asked = {"Access-Control-Request-Method": "POST", "Origin": "https://dashboard.example"}
        preflight = await api.anyone.call("OPTIONS", "/v1/orders", headers=asked)
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://dashboard.example"
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in allowed.headers["Vary"]
    assert "Access-Control-Allow-Origin" not in other.headers
    assert "Origin" in other.headers["Vary"]
    assert preflight.status == 204
    assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


async def test_no_other_origin_may_read_pages(settings: Settings) -> None:
    """Those of the console are opened by a cookie, which browsers send along from all of a site's origins."""
    origin = "https://dashboard.example"
    async with running_api(settings.model_copy(update={"cors_origins": (origin,)})) as api:
        for path in ("/support", "/support/sign-in", "/checkout/x"):
            answer = await api.anyone.get(path, Origin=origin)
            assert answer.headers["Content-Type"].startswith("text/html")
            assert not any(name.startswith("Access-Control") for name in answer.headers), path
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_any_origin_is_never_allowed_with_credentials(settings: Settings) -> None:
    async with running_api(settings.model_copy(update={"cors_origins": ("*",)})) as api:
        answer = await api.anyone.get("/health", Origin="https://anywhere.example")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_without_origins_no_browser_may_call(api: Api) -> None:
    answer = await api.anyone.get("/health", Origin="https://anywhere.example")
    assert not any(name.startswith("Access-Control") for name in answer.headers)


@pytest.fixture
async def broken(settings: Settings) -> AsyncIterator[Api]:
    """The API with three routes more: one that fails, two that do not end."""

    @route("GET", "/bug", auth=None, summary="Fails")
    async def bug(call: Call[None]) -> None:
        raise LookupError(f"a secret: {CARD}")

    @route("GET", "/endless", auth=None, summary="Does not end")
    async def endless(call: Call[None]) -> None:
        await asyncio.sleep(60)

    @route("POST", "/endless", auth=None, summary="Does not end, and keeps no answers by key")
    async def endless_change(call: Call[None]) -> None:
        await asyncio.sleep(60)

    async with (
        running_api(settings.model_copy(update={"request_timeout": 0.2})) as api,
        with_routes(api, bug, endless, endless_change) as broken,
    ):
        yield broken


async def test_a_bug_is_answered_without_internals_and_logged_with_its_trace(broken: Api) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = await broken.anyone.get("/bug")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.raw
    assert b"Lookup" not in answer.raw
    [failure] = [line for line in lines if line["event"] == "http.internal_error"]
    assert failure["exc_info"]
    assert [line["log_level"] for line in lines if line["event"] == "http.request"] == ["error"]


async def test_a_request_that_takes_too_long_is_ended(broken: Api) -> None:
    answer = await broken.anyone.get("/endless")
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["Retry-After"]


async def test_a_key_promises_nothing_where_no_answers_are_kept(broken: Api) -> None:
    answer = await broken.anyone.post("/endless", **{"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (504, "outcome_unknown")


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(api: Api) -> None:
    left = asyncio.Event()

    def note(_: Any, __: str, line: EventDict) -> EventDict:
        if line["event"] in {"http.client_left", "http.escaped"}:
            left.set()
        return line

    with structlog.testing.capture_logs(processors=[note]) as lines:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(
            b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        )
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")  # it waits for the body now
            writer.write(b'{"id": ')
            writer.close()
            await left.wait()
    assert [(line["event"], line["log_level"]) for line in lines] == [("http.client_left", "info")]


async def test_a_head_that_drips_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_DEADLINE", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    async with asyncio.timeout(60):
        for byte in b"GET /health HTTP/1.1\r\nX-Drip: " + b"x" * 2_000:
            try:
                writer.write(bytes([byte]))
                await writer.drain()
            except ConnectionError:
                break
            if reader.at_eof():
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the connection stayed open")
    writer.close()


async def test_a_second_head_that_drips_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_DEADLINE", 0.3)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(whole)
    await reader.readuntil(b"}")
    await asyncio.sleep(0.5)  # idle between requests is not slow
    writer.write(whole)
    await reader.readuntil(b"}")
    writer.write(whole[:20])
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()


async def test_a_body_that_drips_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BODY_DEADLINE", 0.3)
    head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = await exchange(api, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"\r\nConnection: close\r\n" in answer


async def test_each_request_is_one_line_in_the_log_with_its_ids_and_nothing_the_client_wrote(
    api: Api,
) -> None:
    merchant = await api.merchant()
    with structlog.testing.capture_logs(processors=[merge_request]) as lines:
        await merchant.shop.get(f"/v1/orders/{CARD}?externalId={CARD}", **{"X-Correlation-ID": "mine"})
        await merchant.shop.post("/v1/orders", {"amount": 1, "description": f"pay by {CARD}"}, key=CARD)
    requests = [line for line in lines if line["event"] == "http.request"]
    assert [(line["route"], line["status"]) for line in requests] == [
        ("/v1/orders/{id}", 400),
        ("/v1/orders", 400),
    ]
    assert requests[0]["correlation_id"] == "mine"
    assert requests[0]["merchant_id"] == str(merchant.id)
    assert requests[0]["actor"].startswith("api_key:")
    assert CARD not in repr(lines)
    assert merchant.shop.headers["X-API-Key"] not in repr(lines)


async def test_every_route_asks_for_what_it_declares(subtests: pytest.Subtests, api: Api) -> None:
    """Nobody gets past authentication with nothing, or with what another route takes."""
    for each in ROUTES:
        with subtests.test(f"{each.method} {each.path}"):
            path = each.path.replace("{id}", str(uuid7())).replace("{processor}", "stripe")
            wrong = {"api_key": "Authorization", None: "X-Nothing"}.get(each.auth, "X-API-Key")
            for headers in ({}, {wrong: "Bearer sk_test_x"}):
                answer = await api.anyone.call(each.method, path, headers=headers)
                if each.auth is None:
                    assert answer.status != 401
                elif each.page:
                    assert answer.status == 401
                    assert b"password" in answer.raw, "the page that is shown instead asks to sign in"
                else:
                    assert (answer.status, answer.code) == (401, "unauthorized")


def test_routes_under_v1_that_change_anything_take_an_idempotency_key() -> None:
    posts = [each for each in ROUTES if each.method == "POST" and each.path.startswith("/v1/")]
    assert posts
    assert all(each.idempotent and each.auth == "api_key" for each in posts)


async def test_head_is_answered_like_get_without_a_body(api: Api) -> None:
    answer = await api.anyone.call("HEAD", "/health")
    assert (answer.status, answer.raw) == (200, b"")


async def test_ready_names_each_dependency(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PROBE_SECONDS", 20.0)
    answer = await api.anyone.get("/ready")
    assert answer.status == 200
    assert answer.json["dependencies"] == {"postgres": "up", "redis": "up", "temporal": "up"}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("postgres", "database_url", "postgresql://nobody@127.0.0.1:1/none"),
        ("redis", "redis_url", "redis://127.0.0.1:1"),
        ("temporal", "temporal_address", "127.0.0.1:1"),
        ("temporal", "temporal_namespace", "no-such-namespace"),
    ],
)
async def test_ready_says_which_dependency_is_down(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, setting: str, value: str
) -> None:
    monkeypatch.setattr(probes, "PROBE_SECONDS", 20.0)
    broken = Settings.model_validate({**settings.model_dump(), "database_patience": 2.0, setting: value})
    async with running_api(broken) as api:
        with structlog.testing.capture_logs() as lines:
            ready, alive = await api.anyone.get("/ready"), await api.anyone.get("/health")
    assert "error" not in {line["log_level"] for line in lines if line["event"] == "http.request"}
    assert (ready.status, ready.json["status"], alive.status) == (503, "unavailable", 200)
    down = {each for each, state in ready.json["dependencies"].items() if state == "down"}
    assert down == {name}


@pytest.mark.parametrize(("applied", "status"), [(None, 503), ("0001", 503), ("9999", 200)])
async def test_ready_says_whether_the_database_has_the_schema_of_this_version_or_a_later_one(
    settings: Settings, store: EventStore, monkeypatch: pytest.MonkeyPatch, applied: str | None, status: int
) -> None:
    monkeypatch.setattr(probes, "PROBE_SECONDS", 20.0)
    async with store.pool.connection() as connection:
        if applied is None:
            await connection.execute("DROP TABLE alembic_version")
        else:
            await connection.execute("UPDATE alembic_version SET version_num = %s", (applied,))
    async with running_api(settings) as api:
        assert (await api.anyone.get("/ready")).status == status


async def test_however_many_ask_for_readiness_at_a_time_each_dependency_is_asked_once() -> None:
    """Anybody may ask, and is never turned away: a flood would take all connections to the database."""
    asked, answers = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal asked
        asked += 1
        await answers.wait()

    ready = probes.dependencies({"postgres": probe})
    first, *others = [asyncio.ensure_future(ready()) for _ in range(100)]
    await asyncio.sleep(0)
    first.cancel()  # a client that leaves
    await asyncio.sleep(0)
    answers.set()
    assert await asyncio.gather(*others) == [{"postgres": None}] * 99
    assert asked == 1
    assert await ready() == {"postgres": None}
    assert asked == 2


async def test_a_dependency_that_hangs_is_down_when_its_time_is_over_however_long_it_holds_on() -> None:
    """As a question to PostgreSQL does: load balancers and Prometheus would have given up by then."""
    over = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await over.wait()

    async with asyncio.timeout(60):
        asked = await probes.ask_all({"postgres": hangs}, seconds=0.01)
        assert isinstance(asked["postgres"], TimeoutError)
        with pytest.raises(TimeoutError):
            await probes.within(hangs(), seconds=0.01)
    assert not over.is_set()
    over.set()


async def test_a_database_that_lacks_migrations_is_unavailable_and_the_log_says_what_helps(
    settings: Settings, pool: AsyncConnectionPool
) -> None:
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE merchants RENAME TO of_an_earlier_version")
    with structlog.testing.capture_logs() as lines:
        async with running_api(settings) as api:
            answer = await api.anyone.post(
                "/api/auth/login", {"email": "a@example.com", "password": "whatever1"}
            )
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    [line] = [line for line in lines if line["event"] == "http.schema_differs"]
    assert line["log_level"] == "error"
    assert line["error"].endswith("run `payloops migrate`")
    assert line["exc_info"], "a mistake in a statement of ours looks alike, and its trace tells them apart"


async def test_without_the_database_nothing_is_done_and_the_answer_says_so(settings: Settings) -> None:
    broken = Settings.model_validate(
        {
            **settings.model_dump(),
            "database_url": "postgresql://nobody@127.0.0.1:1/none",
            "database_patience": 0.5,
        }
    )
    async with running_api(broken) as api:
        answer = await api.anyone.post("/api/auth/login", {"email": "a@example.com", "password": "whatever1"})
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["Retry-After"]
