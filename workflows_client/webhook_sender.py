"""Sends a webhook: one signed POST to an endpoint that is not under our control and may misbehave in any way.

No redirect is followed, no proxy or other environment variable is used, no cookie is kept, and no connection is reused.
The response is bounded: headers by the parser's limits, the body by how much of it is read, and all of it by a
deadline. Its status line decides, even where what follows it is broken.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from payloops.commands.cards import mask_card_numbers, mask_cut_digits
from payloops.commands.webhooks import WebhookAttempt
from payloops.events.timestamps import utc_now
from payloops.workflows_client.public_sockets import AddressRefused, PublicSockets

DEADLINE = 30.0
"""Seconds for a whole attempt: look-up, connection, TLS, request, answer."""
BODY_SECONDS = 2.0
"""Seconds to read an answer's body, which does not matter: the status alone decides."""
ANSWER_BYTES = 1024
"""How much of an answer's body is read and stored."""
MOST_ANSWERS = 16
"""To one request. Informational answers may precede the last one (RFC 9110, 15.2), and aiohttp would read any number of
them, which takes time from all other deliveries."""
MOST_BLANK = 1024
"""Bytes of empty lines before an answer, which aiohttp would skip without end."""
SWITCHING = 101
"""The only status below 200 that nothing follows."""
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([2-9][0-9][0-9])(?: [^\r\n]*)?\r?\n")
"""Of a last answer."""
LOOKUPS = 256
"""Concurrent look-ups of host names. A look-up cannot be cancelled: it ends when the system's resolver gives up.

More than the places of all failing endpoints (`endpoint_places.py`), so that names without an answer cannot occupy all.
"""
USER_AGENT = "PayLoops-Webhooks/1"


class Sender:
    """Sends webhooks. `now`: the clock for signatures. Made by `open_sender`."""

    def __init__(
        self, *, session: aiohttp.ClientSession, deadline: float, now: Callable[[], datetime]
    ) -> None:
        self._session = session
        self._deadline = deadline
        self._now = now

    async def send(
        self, *, webhook_id: str, url: str, secrets: Sequence[str], turn: int, payload: dict[str, Any]
    ) -> WebhookAttempt:
        """Send it once. Whatever goes wrong at the other end is part of the result, and not raised.

        Args:
            secrets: all of them sign; the current one is first.
            turn: number of the attempt, from 1; see `sdk_signature`.
        """
        body = encoded(payload)
        at, began = self._now(), time.monotonic()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **signatures(webhook_id=webhook_id, body=body, secrets=secrets, turn=turn, at=at),
        }
        status, answer, error = None, "", None
        try:
            async with (
                asyncio.timeout(self._deadline),
                self._session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
                answer = await _beginning(response)
        except TimeoutError:
            error = f"No answer within {self._deadline:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as failure:  # ValueError: an invalid URL
            error = _explained(failure)
        if status is not None:
            error = _refusal(status)
        return WebhookAttempt(
            attempted_at=at,
            duration_ms=round((time.monotonic() - began) * 1000),
            status_code=status,
            error=error,
            answer=answer if status is not None else None,
        )


@asynccontextmanager
async def open_sender(
    *, allow_loopback: bool, deadline: float = DEADLINE, now: Callable[[], datetime] = utc_now
) -> AsyncIterator[Sender]:
    """A sender.

    Args:
        allow_loopback: also send to this machine's own addresses: for development.
        deadline: seconds for an attempt.
    """
    resolver = Resolver()
    connector = _Connector(
        socket_factory=PublicSockets(allow_loopback=allow_loopback),
        resolver=resolver,
        use_dns_cache=False,
        force_close=True,
        limit=0,  # limited by EndpointPlaces
    )
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=deadline),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        ) as session:
            yield Sender(session=session, deadline=deadline, now=now)
    finally:
        await resolver.close()


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(_Connection, loop=self._loop))


class _Connection(ResponseHandler):
    """Takes no more than `MOST_ANSWERS`. The last one counts by its status line, even if the rest of it is broken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._left = MOST_ANSWERS
        self._blank = 0  # bytes of empty lines before it
        self._line = b""  # the status line of the next answer, as far as it has arrived
        self._answered = False

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            super().data_received(data)  # keeps it until there is one
            return
        # aiohttp would drop an answer with an error behind it in the same data, so up to the body it gets single lines.
        while data and not self._answered and self.exception() is None:
            if not self._line:
                begun = data.lstrip(b"\r\n")
                self._blank += len(data) - len(begun)
                data = begun
                if self._blank > MOST_BLANK:
                    self._break_off("Too many empty lines")
                    return
            part, newline, data = data.partition(b"\n")
            if not self._line.endswith(b"\n"):
                self._line += part + newline
            super().data_received(part + newline)
        if self.exception() is None:
            super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        if self._left:
            self._left -= 1
            self._line, self._answered = b"", data[0].code // 100 != 1 or data[0].code == SWITCHING
            super().feed_data(data, size)
        elif self.exception() is None:
            self._break_off("Too many answers")

    def _break_off(self, message: str) -> None:
        self.set_exception(HttpProcessingError(message=message))
        if self.transport is not None:
            self.transport.close()

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        status, self._line = STATUS_LINE.fullmatch(self._line), b""
        if status is not None and self._left:
            headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
            message = RawResponseMessage(
                HttpVersion11, int(status[1]), "", headers, (), True, None, False, False
            )
            self.feed_data((message, EMPTY_PAYLOAD))
        super().set_exception(exc, *cause)


class Resolver(AbstractResolver):
    """The system's resolver, in threads of its own, so that look-ups without an answer block nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=LOOKUPS, thread_name_prefix="webhook-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
            ),
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def encoded(payload: dict[str, Any]) -> bytes:
    """The body as it is sent and signed."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def signatures(
    *, webhook_id: str, body: bytes, secrets: Sequence[str], turn: int, at: datetime
) -> dict[str, str]:
    """The headers that prove where a webhook comes from; none where there is no secret.

    Args:
        webhook_id: the same for every attempt, so that receivers recognize repetitions.
        at: time of this attempt.
    """
    headers = {"webhook-id": webhook_id, "webhook-timestamp": str(int(at.timestamp()))}
    if not secrets:
        return headers
    signed = [_webhook(secret).sign(webhook_id, at, body.decode()) for secret in secrets]
    return headers | {
        "webhook-signature": " ".join(signed),
        "X-PayLoops-Signature": sdk_signature(body=body, secrets=secrets, turn=turn, at=at),
    }


def sdk_signature(*, body: bytes, secrets: Sequence[str], turn: int, at: datetime) -> str:
    """`t=<unix milliseconds>,v1=<hex HMAC-SHA256 of "t.body">`, one `v1` for each secret.

    The SDK only reads the last `v1`. So while two secrets sign, attempts alternate: the first, third … end with the
    current secret, the others with the previous one.
    """
    timestamp = str(int(at.timestamp() * 1000))
    ordered = list(reversed(secrets)) if turn % 2 else list(secrets)
    digests = (
        hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        for secret in ordered
    )
    return ",".join([f"t={timestamp}", *(f"v1={digest}" for digest in digests)])


def _webhook(secret: str) -> Webhook:
    """A signer. Our secrets are `whsec_` and base64; of a secret in another form, its text is the key."""
    try:
        base64.b64decode(secret.removeprefix("whsec_") + "==", validate=False)
        return Webhook(secret)
    except (binascii.Error, ValueError, EmptyWebhookSecretError):
        return Webhook(secret.encode())


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """The part of an answer's body that is stored, without card numbers, which a failing endpoint may echo."""
    kept, whole = bytearray(), False
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while len(kept) < ANSWER_BYTES and not whole:
                chunk = await response.content.read(ANSWER_BYTES - len(kept))
                kept += chunk
                whole = not chunk
    except (TimeoutError, aiohttp.ClientError):
        pass  # the status is what matters
    text = mask_card_numbers(kept.decode(errors="replace").replace("\0", "\ufffd"))
    return text if whole else mask_cut_digits(text)


def _refusal(status: int) -> str | None:
    """What is wrong with a status, for the merchant to read; None if it means that the webhook was delivered."""
    match status // 100:
        case 2:
            return None
        case 3:
            return f"Answered {status}: redirects are not followed"
        case _:
            return f"Answered {status}"


def _explained(failure: Exception) -> str:
    """What happened, for the merchant to read, without details of our network."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, AddressRefused):
            return str(cause)
        cause = cause.__cause__
    match failure:
        case aiohttp.ClientConnectorCertificateError():
            return "The certificate is not valid for this host"
        case aiohttp.ClientConnectorDNSError():
            return "The host's name is not known"
        case aiohttp.ClientConnectorError():
            return f"No connection: {failure.os_error.strerror or failure.os_error}"
        case aiohttp.InvalidURL() | UnicodeError():  # UnicodeError: a host name that cannot be encoded
            return "The URL is not valid"
        case aiohttp.ServerDisconnectedError():
            return "The connection was closed before an answer"
        case aiohttp.ClientResponseError():
            return "What was answered is not valid HTTP"
        case _:
            return f"The connection failed: {type(failure).__name__}"
