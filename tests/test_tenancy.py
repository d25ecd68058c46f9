"""Nobody gets at what is another merchant's: made from the routes, so that none can be forgotten.

Another merchant's id is answered like one that does not exist, to the byte, and nothing is recorded. A route that
takes an id which is not known here fails, as does one that lets in who shows nothing, or something else.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from calling import PASSWORD, Answer, Api, Caller, Merchant, running_api
from projecting import project_everything
from psycopg_pool import AsyncConnectionPool
from test_http_merchant_webhooks import told
from uuid_utils.compat import uuid7

from payloops.commands.add_staff import add_staff
from payloops.events.timestamps import utc_now
from payloops.http.app import ROUTES
from payloops.http.json_schemas import Json
from payloops.http.openapi import openapi_document
from payloops.http.routing import Auth, Call, RequestModel, Route, route
from payloops.settings import Settings

DOCUMENT = openapi_document(ROUTES, version="test")
CORRELATION_ID = "the-same-for-all"


@dataclass(frozen=True)
class World:
    """Two merchants and support staff, each logged in in every way there is."""

    api: Api
    pool: AsyncConnectionPool
    database_url: str
    owner: Merchant
    intruder: Merchant
    staff: Caller
    desk: Caller

    def callers(self, merchant: Merchant) -> dict[Auth, Caller]:
        return {
            "api_key": merchant.shop,
            "bearer": merchant.dashboard,
            "staff": self.staff,
            "staff_session": self.desk,
        }

    async def project(self) -> None:
        """Bring the tables up to date: without, they are empty, and hide everything."""
        await project_everything(self.database_url)

    async def events(self) -> int:
        async with self.pool.connection() as connection:
            cursor = await connection.execute("SELECT count(*) FROM stored_events")
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
async def world(settings: Settings, pool: AsyncConnectionPool, database_url: str) -> AsyncIterator[World]:
    async with running_api(settings.model_copy(update={"rate_limits": False})) as api:
        email = "grace@payloops.example"
        member = await add_staff(
            pool, name="Grace", email=email, password=PASSWORD, passwords=api.services.passwords, at=utc_now()
        )
        session = api.services.staff_sessions.issue(member, now=utc_now())
        token = (await api.anyone.post("/api/staff/login", {"email": email, "password": PASSWORD})).json[
            "token"
        ]
        yield World(
            api=api,
            pool=pool,
            database_url=database_url,
            owner=await api.merchant(),
            intruder=await api.merchant(),
            staff=Caller(api.anyone.session, {"Authorization": f"Bearer {token}"}),
            desk=Caller(api.anyone.session, {"Cookie": f"payloops-staff={session}"}),
        )


async def an_order(world: World) -> str:
    """Paid, so that there is something to get at."""
    order = await world.owner.order(customerEmail="victim@example.com")
    assert (await world.owner.shop.post(f"/v1/orders/{order}/pay")).status == 200
    return order


async def a_checkout_session(world: World) -> str:
    made = await world.owner.shop.post(
        "/v1/checkout/sessions",
        {
            "amount": 1_000,
            "successUrl": "https://victim.example/success",
            "cancelUrl": "https://victim.example/cancel",
        },
    )
    return str(made.json["id"])


async def an_api_key(world: World) -> str:
    issued = await world.owner.dashboard.post("/api/api-keys", {"name": "victim"})
    return str(issued.json["apiKey"]["id"])


POSITIONS = count(1)
"""Of the events that webhooks tell of, each its own."""


async def a_webhook(world: World) -> str:
    [webhook] = await told(world.pool, merchant_id=world.owner.id, count=1, first=next(POSITIONS))
    return str(webhook["id"])


# What a parameter's id is an id of, by the path that it stands in, or by the route and the parameter's name.
OWNED: dict[str, Callable[[World], Awaitable[str]]] = {
    "/v1/orders/{id}": an_order,
    "/api/orders/{id}": an_order,
    "/v1/checkout/sessions/{id}": a_checkout_session,
    "/api/api-keys/{id}": an_api_key,
    "/api/webhooks/{id}": a_webhook,
    "GET /v1/orders?starting_after": an_order,
    "GET /v1/orders?ending_before": an_order,
}
# Ids that are nobody's secret, and why.
OPEN = {
    "/api/staff/orders/{id}": "staff sees every merchant's orders, on record",
    "GET /api/staff/orders?merchantId": "staff sees every merchant's orders, on record",
    "/api/staff/processor-events/{id}": "staff sees what processors told of every merchant, on record",
    "GET /api/staff/processor-events?orderId": "staff sees every merchant's orders, on record",
    "GET /api/staff/processor-events?merchantId": "staff sees every merchant's orders, on record",
    "/support/processor-events/{id}": "staff sees what processors told of every merchant, on record",
    "/support/orders/{id}": "staff sees every merchant's orders, on record",
    "GET /support/volume?merchantId": "staff sees every merchant's figures, on record",
    "GET /support?merchantId": "staff sees every merchant's orders, on record",
    "/webhooks/{processor}/{merchantId}": "whoever sends it proves it with a signature",
    "/checkout/{id}": "the customer has nothing to show but the session's id, which nobody can guess",
}


@dataclass(frozen=True)
class Use:
    """A parameter of a route that takes an id."""

    route: Route
    where: str
    name: str

    def __str__(self) -> str:
        return f"{self.route.method} {self.route.path} {self.where} {self.name}"

    @property
    def key(self) -> str:
        if self.where == "path":
            return self.route.path[: self.route.path.index("{" + self.name + "}")] + "{" + self.name + "}"
        return f"{self.route.method} {self.route.path}?{self.name}"


def uses(routes: tuple[Route, ...], document: Json) -> list[Use]:
    """Every id that any route takes, wherever it stands."""
    found = []
    for each in routes:
        operation = document["paths"][each.path][each.method.lower()]
        for parameter in operation["parameters"]:
            if parameter.get("schema", {}).get("format") == "uuid":
                found.append(Use(each, parameter["in"], parameter["name"]))  # noqa: PERF401
        [body] = operation.get("requestBody", {}).get("content", {}).values() or [{}]
        found += [Use(each, "body", name) for name in ids_in(body.get("schema", {}), document)]
    return found


def ids_in(schema: Any, document: Json, name: str = "") -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from ids_in(each, document, name)
    if not isinstance(schema, dict):
        return
    if schema.get("format") == "uuid":
        yield name
    if "$ref" in schema and not schema["$ref"].endswith("/JsonValue"):
        yield from ids_in(document["components"]["schemas"][schema["$ref"].split("/")[-1]], document, name)
    for keyword in ("anyOf", "oneOf", "allOf", "items"):
        yield from ids_in(schema.get(keyword), document, name)
    for field, inner in schema.get("properties", {}).items():
        yield from ids_in(inner, document, f"{name}.{field}".strip("."))


def unknown(found: list[Use]) -> list[str]:
    return [str(use) for use in found if use.key not in OWNED and use.key not in OPEN]


def test_every_route_that_takes_an_id_is_known_here() -> None:
    """A route fails here until `OWNED` says how to make what it takes, or `OPEN` why anyone may name it."""
    assert unknown(uses(ROUTES, DOCUMENT)) == []


def test_a_route_that_takes_an_id_would_not_go_unnoticed() -> None:
    class Inner(RequestModel):
        refund: UUID

    class Wanted(RequestModel):
        inner: Inner | None = None

    @route("POST", "/v1/things/{id}", auth="api_key", body=Wanted, query=Wanted, summary="New")
    async def change_thing(call: Call[Wanted]) -> None: ...

    found = unknown(uses((change_thing,), openapi_document((change_thing,), version="test")))
    assert found == ["POST /v1/things/{id} path id", "POST /v1/things/{id} body inner.refund"]


async def call(world: World, caller: Caller, use: Use, id: str) -> Answer:
    """The route, as its documentation shows it, with this id in its place."""
    each = use.route
    operation = DOCUMENT["paths"][each.path][each.method.lower()]
    path = re.sub(r"\{(\w+)\}", lambda match: each.named.get(match[1], [str(uuid7())])[0], each.path)
    if use.where == "path":
        path = each.path.replace("{" + use.name + "}", id)
    if use.where == "query":
        path += "?" + urlencode({use.name: id})
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    headers = {"X-Correlation-ID": CORRELATION_ID}
    if each.idempotent:
        headers["Idempotency-Key"] = str(uuid7())
    return await caller.call(each.method, path, body, headers=headers)


async def test_anothers_id_is_answered_like_one_that_does_not_exist(
    world: World, subtests: pytest.Subtests
) -> None:
    for use in uses(ROUTES, DOCUMENT):
        if use.key in OWNED:
            for projected in (False, True):
                with subtests.test(str(use), projected=projected):
                    await is_hidden(world, use, projected=projected)


async def is_hidden(world: World, use: Use, *, projected: bool) -> None:
    assert use.where in ("path", "query"), "say how an id is put into a body"
    assert use.route.auth is not None
    id = await OWNED[use.key](world)
    if projected:
        await world.project()
    before = await world.events()
    caller = world.callers(world.intruder)[use.route.auth]
    anothers, nobodys = [await call(world, caller, use, each) for each in (id, str(uuid7()))]
    assert (anothers.status, anothers.code) == (404, "not_found")
    assert (anothers.status, anothers.raw, lasting(anothers)) == (
        nobodys.status,
        nobodys.raw,
        lasting(nobodys),
    )
    assert await world.events() == before
    own = await call(world, world.callers(world.owner)[use.route.auth], use, id)
    assert own.status != 404, "the id is good: it was the caller who could not see it"


def lasting(answer: Answer) -> list[tuple[str, str]]:
    return [(name, value) for name, value in answer.headers.items() if name != "Date"]


GUARDED = [each for each in ROUTES if each.auth is not None]


async def test_nothing_and_what_is_shown_elsewhere_let_nobody_in(
    world: World, subtests: pytest.Subtests
) -> None:
    """Also what is good: a merchant's key where a token is asked for, a token of staff where it is a merchant's."""
    before = await world.events()
    for each in GUARDED:
        others = [caller for auth, caller in world.callers(world.owner).items() if auth != each.auth]
        for number, caller in enumerate((world.api.anyone, *others)):
            with subtests.test(f"{each.method} {each.path} {number}"):
                answer = await call(world, caller, Use(each, "none", ""), "")
                assert answer.status == 401
                if each.page:
                    assert b"Sign in" in answer.raw
                else:
                    assert answer.code in ("unauthorized", "invalid_token", "invalid_api_key")
                assert answer.headers["WWW-Authenticate"]
    assert await world.events() == before


async def test_no_list_shows_what_is_anothers(world: World, subtests: pytest.Subtests) -> None:
    made = {await make(world) for make in dict.fromkeys(OWNED.values())}
    await world.owner.dashboard.call(
        "PUT", "/api/merchants/me", {"webhookUrl": "https://victim.example/hook"}
    )
    await world.owner.dashboard.call("DELETE", "/api/processors/razorpay")
    await world.project()
    secrets = {str(world.owner.id), world.owner.email, "victim", *made}
    callers, owners = world.callers(world.intruder), world.callers(world.owner)
    for each in GUARDED:
        if each.method == "GET" and "{" not in each.path and each.auth in ("api_key", "bearer"):
            with subtests.test(path=each.path):
                answer = await callers[each.auth].get(each.path)
                assert answer.status == 200
                assert [secret for secret in secrets if secret in answer.raw.decode()] == []
                own = await owners[each.auth].get(each.path)
                assert own.raw != answer.raw, "there is something to hide"
