"""How a webhook is signed and sent, and what is made of whatever comes back."""

import asyncio
import contextlib
import gzip
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from masking import WRITINGS, shows_card
from receiving import Endpoint, Received, sdk_accepts
from standardwebhooks import Webhook, WebhookVerificationError

from payloops.commands.webhook_secrets import make_secret
from payloops.workflows_client import webhook_sender
from payloops.workflows_client.webhook_delivery import ACTIVITY_TIMEOUT
from payloops.workflows_client.webhook_sender import Sender, open_sender

PAYLOAD: dict[str, Any] = {
    "id": "5d3c5cf0",
    "type": "payment.captured",
    "data": {"metadata": {"é": "\u2028 \\ </script>"}},
}


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    async with open_sender(allow_loopback=True) as opened:
        yield opened


@pytest.fixture
async def hasty() -> AsyncIterator[Sender]:
    """A sender that waits for no answer for long."""
    async with open_sender(allow_loopback=True, deadline=1.5) as opened:
        yield opened


async def sent(
    sender: Sender, endpoint: Endpoint, secrets: list[str], *, turn: int = 1, webhook_id: str = "msg_1"
) -> Received:
    attempt = await sender.send(
        webhook_id=webhook_id, url=endpoint.url, secrets=secrets, turn=turn, payload=PAYLOAD
    )
    assert attempt.delivered, attempt
    return endpoint.received[-1]


def accepted_by_sdk(received: Received, secret: str) -> bool:
    now = time.time_ns() // 1_000_000
    return sdk_accepts(received.body, received.headers["X-PayLoops-Signature"], secret, now_ms=now)


def accepted_by_standard(received: Received, secret: str) -> bool:
    try:
        return bool(Webhook(secret).verify(received.body, dict(received.headers)) == PAYLOAD)
    except WebhookVerificationError:
        return False


async def test_both_kinds_of_receivers_accept_it_and_only_with_the_secret(
    sender: Sender, endpoint: Endpoint
) -> None:
    secret = make_secret()
    received = await sent(sender, endpoint, [secret])
    assert received.headers["webhook-id"] == "msg_1"
    assert received.headers["Content-Type"] == "application/json"
    assert received.json == PAYLOAD
    for accepted in (accepted_by_sdk, accepted_by_standard):
        assert accepted(received, secret)
        assert not accepted(received, make_secret())
        altered = Received(received.path, received.headers, received.body.replace(b"captured", b"failed"))
        assert not accepted(altered, secret)


async def test_after_a_rotation_both_secrets_sign_and_the_sdk_is_served_in_turns(
    sender: Sender, endpoint: Endpoint
) -> None:
    new, former = make_secret(), make_secret()
    for turn in (1, 2, 3):
        received = await sent(sender, endpoint, [new, former], turn=turn)
        assert accepted_by_standard(received, new)
        assert accepted_by_standard(received, former)
        assert accepted_by_sdk(received, new) is (turn % 2 == 1)
        assert accepted_by_sdk(received, former) is (turn % 2 == 0)
        assert received.headers["X-PayLoops-Signature"].count("v1=") == 2


async def test_receivers_who_verify_as_the_readme_says_accept_it_and_only_with_a_secret(
    sender: Sender, endpoint: Endpoint
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    receiver: dict[str, Any] = {}
    exec(code, receiver)  # a page of ours
    is_genuine: Callable[[bytes, str, str], bool] = receiver["is_genuine"]
    new, former = make_secret(), make_secret()
    for secrets, turn in (([new], 1), ([new, former], 1), ([new, former], 2)):
        received = await sent(sender, endpoint, secrets, turn=turn)
        signature = received.headers["X-PayLoops-Signature"]
        assert all(is_genuine(received.body, signature, secret) for secret in secrets)
        assert not is_genuine(received.body, signature, make_secret())
        assert not is_genuine(received.body + b" ", signature, new)
        for wrong in (
            "",
            "t",
            "t=,v1=",
            "t=x,v1=é",
            signature.replace("t=", "t=1"),
            signature.partition(",")[2],
        ):
            assert not is_genuine(received.body, wrong, new)
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        stale = webhook_sender.sdk_signature(body=received.body, secrets=secrets, turn=turn, at=hour_ago)
        assert not is_genuine(received.body, stale, new)


async def test_every_attempt_has_its_own_time_and_the_same_id(endpoint: Endpoint) -> None:
    moments = iter(datetime(2026, 11, 23, 12, 0, second, 123_000, UTC) for second in (0, 5))
    async with open_sender(allow_loopback=True, now=lambda: next(moments)) as sender:
        first, second = [await sent(sender, endpoint, ["secret"]) for _ in range(2)]
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert [each.headers["webhook-timestamp"] for each in (first, second)] == ["1795435200", "1795435205"]
    assert first.headers["X-PayLoops-Signature"].startswith("t=1795435200123,v1=")
    assert second.headers["X-PayLoops-Signature"].startswith("t=1795435205123,v1=")


@pytest.mark.parametrize("secret", ["plain text, no base64!", "whsec_", "ä", "a"])
async def test_secrets_of_any_form_sign(sender: Sender, endpoint: Endpoint, secret: str) -> None:
    """A worker of others may name one."""
    received = await sent(sender, endpoint, [secret])
    assert accepted_by_sdk(received, secret)
    assert received.headers["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_2xx_is_delivered(sender: Sender, endpoint: Endpoint, status: int) -> None:
    endpoint.answer = lambda _: web.Response(status=status)
    received = await sent(sender, endpoint, [])
    assert not any("signature" in name.lower() for name in received.headers)  # there is no secret


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (300, "Answered 300: redirects are not followed"),
        *((status, f"Answered {status}") for status in (400, 401, 404, 410, 429, 500, 503)),
    ],
)
async def test_anything_else_is_not(sender: Sender, endpoint: Endpoint, status: int, error: str) -> None:
    endpoint.answer = lambda _: status
    attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert (attempt.status_code, attempt.error, attempt.answer) == (status, error, "thanks")


MUCH = 100_000_000
"""Bytes: more than fit into buffers between here and there."""


async def test_the_first_kilobyte_of_an_answer_is_kept_and_no_more_is_read(
    sender: Sender, endpoint: Endpoint
) -> None:
    answered = web.StreamResponse()
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        await answered.prepare(request)
        await answered.write(b"\x00\xff")
        try:
            while answered.body_length < MUCH:
                await answered.write(b"a" * 65_536)
        finally:
            ended.set()
        return answered

    app = web.Application()
    app.router.add_post("/", endless)
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
        assert attempt.delivered
        assert attempt.answer == "\ufffd\ufffd" + "a" * 1022
        await asyncio.wait_for(ended.wait(), 60)
    assert answered.body_length < MUCH


async def test_a_card_number_in_an_answer_is_not_kept(sender: Sender, endpoint: Endpoint) -> None:
    endpoint.answer = lambda _: web.Response(status=500, text=f"while paying with {WRITINGS[1]}: no luck")
    attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert attempt.answer == "while paying with **** **** **** ****: no luck"


@pytest.mark.parametrize("card", WRITINGS)
async def test_of_a_card_number_at_the_end_of_what_is_kept_no_digit_is(
    sender: Sender, endpoint: Endpoint, card: str
) -> None:
    for kept in range(7, len(card)):
        answer = "x" * (1024 - kept) + card

        def respond(_: Received, answer: str = answer) -> web.Response:
            return web.Response(status=500, text=answer)

        endpoint.answer = respond
        attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
        assert attempt.answer is not None
        assert len(attempt.answer) == 1024
        assert not shows_card(attempt.answer)


async def test_a_number_at_the_end_of_a_whole_answer_is_kept(sender: Sender, endpoint: Endpoint) -> None:
    endpoint.answer = lambda _: web.Response(status=500, text="see incident 20261129")
    attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert attempt.answer == "see incident 20261129"


async def raw_server(answer: bytes, *, drip: bytes = b"", reset: bool = False) -> asyncio.Server:
    """Answers with bytes as they are, then drips others until the client goes, or resets the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while drip:
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(drip)
            await writer.drain()
            if reset:
                await asyncio.sleep(0.05)  # a reset discards what was not taken yet
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "drip", "status"),
    [  # some of these end by the deadline alone
        (b"", b"H", None),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a" * 1_000, 200),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (EARLY * 9 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 200),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"", 101),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n", b"", 200),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000_000 + b"\r\n\r\n", b"", 200),
        (b"not http at all\r\n\r\n", b"", None),
        (b"", b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbomb", b"", 200),
        (b"HTTP/1.1 103 Early Hints\r\nno header\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"", None),
        (EARLY * 15 + b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", b"", 200),
        (b"\r\n" * 512 + b"HTTP/1.1 200 OK\r\n\r\n", b"", 200),
        (b"HTTP/1.1 200 O", b"", None),
        (b"HTTP/1.1 2000 OK\r\n\r\n", b"", None),
    ],
)
async def test_an_endpoint_that_misbehaves_ends_by_the_deadline(
    sender: Sender, hasty: Sender, answer: bytes, drip: bytes, status: int | None
) -> None:
    server = await raw_server(answer, drip=drip)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with asyncio.timeout(60):
        attempt = await (hasty if status is None else sender).send(
            webhook_id="i", url=url, secrets=[], turn=1, payload={}
        )
    assert attempt.status_code == status
    assert attempt.delivered is (status == 200)
    server.close()


BROKEN = {
    b"\r\nContent-Length: 5\r\n\r\nabcde": "abcde",
    b"\r\n\r\nabcde": "abcde",
    b"\r\nContent-Length: 2\r\n\r\nok and more": "ok",
    b"\nContent-Length: 2\n\nok and more": "ok",
    b"\r\nTransfer-Encoding: chunked\r\n\r\nzz": "",
    b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok and more": "ok",
    b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok": "",
    b"\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok": "",
    b"\r\nContent-Length: two\r\n\r\nok": "",
    b"\r\nno header\r\n\r\nok": "",
    b"\r\nContent-Ty": "",
    b"\r\n": "",
}
"""What may follow a status, and how much of it is kept."""


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
@pytest.mark.parametrize("status", [200, 204, 302, 410, 500])
async def test_the_status_counts_whatever_follows_it(
    sender: Sender,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
    status: int,
    before: bytes,
    reset: bool,
) -> None:
    monkeypatch.setattr(webhook_sender, "BODY_SECONDS", 0.3)
    for broken, kept in BROKEN.items():
        with subtests.test(broken=broken):
            server = await raw_server(before + b"HTTP/1.1 %d Status" % status + broken, reset=reset)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
            server.close()
            assert (attempt.status_code, attempt.delivered) == (status, status < 300)
            assert attempt.answer == ("" if status == 204 else kept)


@pytest.mark.parametrize(
    ("answer", "drip", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"", "abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc", b"a" * 1_000, "abc" + "a" * 1_021),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc", b"a", None),  # what came in time
    ],
)
async def test_whose_answer_does_not_end_is_delivered_to_and_the_beginning_is_kept(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, answer: bytes, drip: bytes, kept: str | None
) -> None:
    monkeypatch.setattr(webhook_sender, "BODY_SECONDS", 0.3 if kept is None else 20.0)
    server = await raw_server(answer, drip=drip)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
    assert attempt.delivered
    assert attempt.answer is not None
    assert attempt.answer == kept or (kept is None and attempt.answer.startswith("abc"))
    assert kept is not None or len(attempt.answer) < 1_024
    server.close()


async def test_an_answer_counts_though_its_body_outlasts_the_deadline(
    hasty: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "BODY_SECONDS", 20.0)
    server = await raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", drip=b"a")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    attempt = await hasty.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
    assert (attempt.status_code, attempt.error) == (200, None)
    server.close()


async def test_of_informational_answers_only_so_many_are_taken(sender: Sender) -> None:
    """aiohttp waits for the answer after them, and each takes time of whom else is sent to."""
    taken = asyncio.get_running_loop().create_future()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        count = 0
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000)
                await writer.drain()
                count += 25_000
        taken.set_result(count)

    async with await asyncio.start_server(flood, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
        assert attempt.error == "What was answered is not valid HTTP"
        assert await taken < 20 * 1024 * 1024, "the kernel's buffers take some"


async def test_nobody_listening_and_unknown_names_are_told_in_words(sender: Sender) -> None:
    for url, error in [
        ("http://127.0.0.1:1/", "No connection: Connect call failed ('127.0.0.1', 1)"),
        ("http://no-such-host.invalid/", "The host's name is not known"),
        (f"http://{'a' * 64}.invalid/", "The URL is not valid"),
    ]:
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
        assert (attempt.error, attempt.status_code, attempt.answer) == (error, None, None)


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(sender: Sender, tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    file.write_bytes(self_signed("localhost"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    received = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", ssl=context) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
    assert (attempt.error, received) == ("The certificate is not valid for this host", [])


def self_signed(host: str) -> bytes:
    """A certificate and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    written = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(*written)


async def test_an_endpoint_has_the_thirty_seconds_of_the_contract_and_its_activity_more() -> None:
    async with open_sender(allow_loopback=True) as sender:
        assert sender._deadline == sender._session.timeout.total == 30
    assert timedelta(seconds=30) < ACTIVITY_TIMEOUT


async def test_nothing_of_one_delivery_is_kept_for_the_next(sender: Sender) -> None:
    """Neither its connection, though the endpoint would keep it open, nor its cookies."""
    taken: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(requests := [])
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                requests.append((await reader.readuntil(b"\r\n\r\n{}")).lower())
                writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}/"
        for _ in range(2):
            assert (await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})).delivered
    assert [len(requests) for requests in taken] == [1, 1]
    assert not any(b"\ncookie:" in request for requests in taken for request in requests)


async def test_a_compressed_answer_is_neither_asked_for_nor_unpacked(
    sender: Sender, endpoint: Endpoint
) -> None:
    packed = gzip.compress(b"a" * 1_000_000)
    endpoint.answer = lambda _: web.Response(body=packed, headers={"Content-Encoding": "gzip"})
    attempt = await sender.send(webhook_id="i", url=endpoint.url, secrets=[], turn=1, payload={})
    assert attempt.delivered
    assert "aaa" not in (attempt.answer or "")
    assert "Accept-Encoding" not in endpoint.received[0].headers


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "The connection was closed before an answer"),
        (b"ok", "What was answered is not valid HTTP"),
        (EARLY * 16 + b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "What was answered is not valid HTTP"),
        (EARLY * 16 + b"HTTP/1.1 200 OK\r\n\r\n", "What was answered is not valid HTTP"),
        (b"\n" * 1_025, "What was answered is not valid HTTP"),
        (b"\r\n" * 10_000_000, "What was answered is not valid HTTP"),
    ],
)
async def test_what_is_no_answer_is_told_in_words(sender: Sender, answer: bytes, error: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
    assert attempt.error == error


async def test_names_that_nobody_answers_for_hold_up_no_other(
    sender: Sender, hasty: Sender, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's resolver is a third party, and takes its time for some."""
    asked, answered = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def lookup(host: str, *arguments: Any, **named: Any) -> Any:
        if host == "dead.example":
            asked.set()
            answered.wait(60)
            raise socket.gaierror
        return real(host, *arguments, **named)

    async def send_to_the_dead(by: Sender) -> str | None:
        attempt = await by.send(webhook_id="i", url="http://dead.example/", secrets=[], turn=1, payload={})
        return attempt.error

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    try:
        assert await send_to_the_dead(hasty) == "No answer within 1.5 s"
        asked.clear()
        dead = [asyncio.create_task(send_to_the_dead(sender)) for _ in range(100)]
        assert await asyncio.to_thread(asked.wait, 60)
        url = endpoint.url.replace("127.0.0.1", "localhost")
        attempt = await sender.send(webhook_id="i", url=url, secrets=[], turn=1, payload={})
        assert attempt.delivered, attempt
        assert not all(each.done() for each in dead), "they wait all the while"
    finally:
        answered.set()
    await asyncio.gather(*dead)
