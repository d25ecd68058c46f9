"""The API for tests: served on a free port in this process, called over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from typing import Any
from uuid import UUID

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from payloops.daemons.api import serving
from payloops.daemons.listening import bind
from payloops.http.app import create_app
from payloops.http.connections import connection_factory
from payloops.http.endpoint import endpoint
from payloops.http.routing import Route
from payloops.http.services import Services
from payloops.settings import Settings

PASSWORD = "correct horse battery"
_numbers = count(1)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def code(self) -> str:
        """The problem's code, after a look at whether it is a problem as the contract has it."""
        assert self.headers["Content-Type"] == "application/problem+json"
        body = self.json
        assert set(body) == {
            *("type", "title", "status", "detail", "code", "message", "errors", "correlationId")
        }
        assert body["status"] == self.status
        assert body["correlationId"] == self.headers["X-Correlation-ID"]
        return str(body["code"])

    @property
    def fields(self) -> set[str]:
        """The fields that a validation error names."""
        assert (self.status, self.code) == (400, "validation_error"), self.raw
        return {error["field"] for error in self.json["errors"]}

    @property
    def lasting(self) -> dict[str, Any]:
        """The body without what differs from one request to the next."""
        return {name: value for name, value in self.json.items() if name != "correlationId"}


@dataclass(frozen=True)
class Caller:
    """Somebody who calls the API, with the headers that say who."""

    session: aiohttp.ClientSession
    headers: Mapping[str, str] = field(default_factory=dict)

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = {**self.headers, **(headers or {})}
        if json is not None:
            data = orjson.dumps(json)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        body = None if data is None else BytesIO(data)
        async with self.session.request(method, path, data=body, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, json: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        keyed = {"Idempotency-Key": key} if key is not None else {}
        return await self.call("POST", path, json, headers={**headers, **keyed})

    def with_headers(self, **headers: str) -> "Caller":
        return Caller(self.session, headers)


@dataclass(frozen=True)
class Merchant:
    """An account with both processors and a key."""

    id: UUID
    email: str
    dashboard: Caller
    shop: Caller

    async def order(self, **fields: Any) -> str:
        """Creates an order; its id."""
        answer = await self.shop.post("/v1/orders", {"amount": 1_000, **fields})
        assert answer.status == 201, answer.raw
        return str(answer.json["id"])

    async def order_is(self, order_id: str, status: str) -> None:
        """Wait until the order reads so."""
        async with asyncio.timeout(60):
            while (await self.shop.get(f"/v1/orders/{order_id}")).json.get("status") != status:
                await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Api:
    url: str
    port: int
    anyone: Caller
    services: Services

    async def merchant(self, *, processors: bool = True) -> Merchant:
        email = f"merchant-{next(_numbers)}@example.com"
        registered = await self.anyone.post(
            "/api/auth/register", {"name": "Merchant", "email": email, "password": PASSWORD}
        )
        assert registered.status == 201, registered.raw
        dashboard = Caller(self.anyone.session, {"Authorization": f"Bearer {registered.json['token']}"})
        if processors:
            for body in (
                {"processor": "stripe", "credentials": {"secretKey": "sk_stripe"}},
                {"processor": "razorpay", "credentials": {"keyId": "id", "keySecret": "secret"}},
            ):
                assert (await dashboard.post("/api/processors", body)).status == 200
        issued = await dashboard.post("/api/api-keys", {"name": "shop"})
        assert issued.status == 201, issued.raw
        return Merchant(
            id=UUID(registered.json["merchant"]["id"]),
            email=email,
            dashboard=dashboard,
            shop=Caller(self.anyone.session, {"X-API-Key": issued.json["secret"]}),
        )


@asynccontextmanager
async def running_api(settings: Settings, *, port: int = 0) -> AsyncIterator[Api]:
    listener = bind("127.0.0.1", port)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with (
        serving(settings, listener) as services,
        aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        yield Api(url=url, port=port, anyone=Caller(session), services=services)


@asynccontextmanager
async def with_routes(api: Api, *routes: Route) -> AsyncIterator[Api]:
    """The same API once more, with some routes that only a test has."""
    app = create_app(api.services)
    for each in routes:
        app.router.add_route(each.method, each.path, endpoint(each, api.services))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    assert runner.server is not None
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = await asyncio.get_running_loop().create_server(connection_factory(runner.server), sock=listener)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession(url) as session:
        yield Api(url=url, port=port, anyone=Caller(session), services=api.services)
    server.close()
    await runner.cleanup()
